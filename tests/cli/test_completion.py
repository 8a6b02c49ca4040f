"""A shell completes commands, settings, values that are choices, and recipes, with the script printed for it."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from esl_dist.cli.commands import COMMANDS
from esl_dist.cli.completion import SHELLS, changed, completed
from esl_dist.config_values import converted, settings_of
from esl_dist.early import STATE_FILE
from esl_dist.errors import UserError
from esl_dist.yaml_text import values_of
from tests.cli.commands import environment, esl_dist

ASKED_BY_BASH = """
compopt() { echo "$@"; }
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_esl_dist_completion esl-dist
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the command, and with the script that bash reads."""
    folder = tmp_path_factory.mktemp("bin")
    command = folder / "esl-dist"
    command.write_text(f"#!{sys.executable}\nfrom esl_dist.__main__ import main\nmain()\n")
    command.chmod(0o755)
    (folder / "script").write_text(esl_dist("completion", "bash", folder=folder).stdout)
    return folder


def in_bash(installed: Path, words: Sequence[str]) -> list[str]:
    """Return what bash is told for a command line, with the options of completion that are set for it."""
    path = f"{installed}{os.pathsep}{os.environ['PATH']}"
    called = ["bash", "--norc", "-c", ASKED_BY_BASH, "bash", str(installed / "script"), *words]
    done = subprocess.run(called, env=environment(PATH=path), capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["pse"], ["pseudo-label"]),
        (["train", "batch_si"], ["-o nospace", "batch_size="]),
        # Where bash cuts words.
        (["train", "seed", "=", "1", "precision", "=", "b"], ["bf16"]),
        (["train", "--config", "gta5_cityscapes/advent_"], ["gta5_cityscapes/advent_esl"]),
        # More may follow in a list.
        (["predict", "save", "=", "[raw_ids,tr"], ["-o nospace", "[raw_ids,train_ids"]),
    ],
)
def test_bash_completes(installed: Path, words: list[str], told: list[str]) -> None:
    assert in_bash(installed, ["esl-dist", *words]) == told


def test_to_complete_a_word_leaves_the_state_file_as_it_is(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    asked = {"_ESL_DIST_COMPLETE": "bash_complete", "COMP_WORDS": "esl-dist tr", "COMP_CWORD": "1"}
    done = esl_dist(folder=tmp_path, **asked, **{STATE_FILE: str(state)})
    assert (done.stdout, done.stderr) == ("plain,train\n", "")
    assert not state.exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_script_for_each_shell_that_puts_no_blank_behind_a_setting(shell: str, tmp_path: Path) -> None:
    done = esl_dist("completion", shell, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"bash": "compopt -o nospace", "zsh": "-S ''", "fish": "split -m 1"}[shell] in done.stdout
    assert f"_ESL_DIST_COMPLETE={shell}_complete" in done.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_of_click_that_is_not_as_it_is_known_is_refused(shell: str) -> None:
    """Changed by nothing, it would put a blank behind a setting, and nobody would know why."""
    known, changes = SHELLS[shell]
    for text in changes:
        other = type("Other", (known,), {"source_template": known.source_template.replace(text, "")})
        with pytest.raises(UserError, match=rf"^completion {shell}: click [0-9.]+ has a script without "):
            changed(other, changes)


def complete(command: str, *words: str) -> list[str]:
    *before, word = words
    return [item.value if item.type == "plain" else item.type for item in completed(COMMANDS[command], before, word)]


@pytest.mark.parametrize(
    ("command", "words", "told"),
    [
        ("train", ["source.si"], ["source.size="]),
        ("train", ["sour"], ["source."]),
        ("train", ["source.r"], ["source.rare_classes."]),
        ("train", ["source.rare_classes.t"], ["source.rare_classes.temperature="]),
        ("train", ["precision=b"], ["precision=bf16"]),
        ("train", ["precision", ""], ["no", "tf32", "bf16", "fp16"]),
        ("train", ["precision", "=", "t"], ["tf32"]),
        ("train", ["compile="], ["compile=true", "compile=false"]),
        ("train", ["method.name=ad"], ["method.name=advent"]),
        ("train", ["network.architecture=t"], ["network.architecture=tiny"]),
        ("train", ["--co"], ["--config"]),
        ("train", ["--config=demo/self"], ["--config=demo/self_training"]),
        ("train", ["--config", "=", "demo/self"], ["demo/self_training"]),
        ("train", ["--config", "./"], ["file"]),
        ("train", ["source.path=shards/"], ["dir"]),
        ("train", ["steps="], []),
        ("train", ["steps=20", "name", "=", "a", "log_"], ["log_every="]),
        ("train", ["log_every=20", "log_"], []),
        ("train", ["log_every", "=", "20", "log_"], []),
        ("train", ["no_such=x"], []),
        ("pack", ["dataset=city"], ["dataset=cityscapes"]),
        ("predict", ["classes_from=citysc"], ["classes_from=cityscapes"]),
        ("export", ["classes_from=shards/"], ["file"]),
        ("pack", ["image_format=p"], ["image_format=png"]),
        ("train", ["dataset=city"], []),
        ("report", ["experiments/"], ["file"]),
        ("predict", ["save=[raw_ids, e"], ["save=[raw_ids, entropy"]),
        ("predict", ["save=r"], ["save=[raw_ids"]),
        ("predict", ["save", "=", "[c"], ["[colors", "[confidence"]),
        ("predict", ["save=[colors,co"], ["save=[colors,confidence"]),
        ("predict", ["save=[colors]"], []),
        ("predict", ["size="], []),
        ("report", ["runs="], []),
        ("doctor", ["ev"], ["evaluate"]),
        ("doctor", ["evaluate", "data.pa"], ["data.path="]),
        ("doctor", ["--config", "demo/advent", "batch_"], ["batch_size="]),
        ("doctor", ["evaluate", "train"], []),
        ("doctor", ["pseudo-label", "score", "=", "conf"], ["confidence"]),
        ("doctor", ["train", "recip"], ["recipe="]),
        ("doctor", ["recipe=demo/self"], ["recipe=demo/self_training"]),
        ("train", ["evalu"], []),
    ],
)
def test_a_word_becomes(command: str, words: list[str], told: list[str]) -> None:
    assert complete(command, *words) == told


def offered_lists() -> list[tuple[str, str]]:
    found = ((name, key, one) for name in COMMANDS for key, one in settings_of(COMMANDS[name].settings()).items())
    return [(name, key) for name, key, one in found if "list[" in str(one.kind) and any(b.choices for b in one.bounds)]


@pytest.mark.parametrize(("command", "key"), offered_lists())
def test_what_is_offered_of_a_list_is_taken_once_it_is_closed(command: str, key: str) -> None:
    setting = settings_of(COMMANDS[command].settings())[key]
    one = complete(command, f"{key}=")
    two = [word for first in one for word in complete(command, f"{first},")]
    assert len(two) == len(one) * (len(one) - 1)
    for word in (*one, *two):
        value = converted(values_of(f"{word.partition('=')[2]}]", "test"), setting.kind, "test", key)
        assert all(bound.holds(value if bound.is_of_list else part) for bound in setting.bounds for part in value)


def test_nothing_typed_may_become_any_setting_or_group_of_them_once() -> None:
    told = complete("train", "")
    assert {"seed=", "source.", "optimizer.", "--config"} <= set(told)
    assert len(told) == len(set(told)) < 40
