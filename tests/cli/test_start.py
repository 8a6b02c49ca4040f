"""The command `esl-dist`: its commands are the programs, its help is short, and what is mistyped gets the near name."""

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

import pytest

from esl_dist import called, command_line, config
from esl_dist.adaptation.catalogue import METHODS
from esl_dist.cli import start
from esl_dist.cli.commands import COMMANDS
from esl_dist.cli.help import help_of
from esl_dist.config_files import describe, load_config
from esl_dist.config_values import settings_of
from esl_dist.early import STATE_FILE
from esl_dist.endings import read_state
from esl_dist.errors import UserError
from esl_dist.runs.run_record import RUN_RECORD, read_record
from tests.cli.commands import COMMAND, environment, esl_dist
from tests.on_ranks import PROJECT, shared_server
from tests.programs import TINY_TRAINING

MADE = [name for name in COMMANDS if (PROJECT / f"esl_dist/programs/{COMMANDS[name].program}.py").exists()]


@pytest.mark.parametrize("name", MADE)
def test_a_command_has_the_settings_that_its_program_takes(name: str) -> None:
    main = COMMANDS[name].main()
    assert inspect.get_annotations(main, eval_str=True)["config"] is COMMANDS[name].settings()


def test_every_program_is_a_command() -> None:
    programs = {file.stem for file in (PROJECT / "esl_dist/programs").glob("[a-z]*.py")}
    assert programs <= {command.program for command in COMMANDS.values()}


def test_the_help_names_every_command_in_the_order_of_the_work(tmp_path: Path) -> None:
    done = esl_dist("--help", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    listed = [line.split()[0] for line in done.stdout.partition("Commands:\n")[2].splitlines() if line[2] != " "]
    assert listed == [*COMMANDS, "recipes", "completion"]
    assert esl_dist(folder=tmp_path).stdout == done.stdout, "without a word it is printed, too"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_examples_and_a_line_for_each_setting(name: str) -> None:
    text = help_of(name, COMMANDS[name])
    assert all(f"  esl-dist {name}{example.removeprefix(name)}\n" in text for example in COMMANDS[name].examples)
    lines = text.splitlines()
    for key, *_ in describe(COMMANDS[name].settings()):
        assert sum(line.startswith(f"  {key}=") for line in lines) == 1
    assert all(len(line) <= 100 for line in lines[lines.index("") :] if not line.startswith("  esl-dist "))


@pytest.mark.parametrize("name", MADE)
def test_the_examples_of_a_help_are_right(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text("source: {path: a}\ntarget: {path: b}\n")
    seen: list[object] = []

    def note(schema: type, _: object, words: Sequence[str]) -> None:
        seen.append(load_config(schema, *command_line._arguments(schema, words)))

    monkeypatch.setattr(command_line, "run_program", note)
    for example in COMMANDS[name].examples:
        monkeypatch.setattr("sys.argv", ["esl-dist", *(word.strip('"') for word in example.split())])
        start.start()
    assert len(seen) == len(COMMANDS[name].examples)


def test_help_is_by_group(tmp_path: Path) -> None:
    text = help_of("train", COMMANDS["train"])
    groups = [line.split(":")[0] for line in text.partition("those of the file\n")[2].splitlines() if line[:1].strip()]
    assert groups == [
        "required",
        "settings",
        *dict.fromkeys(key.rpartition(".")[0] for key in settings_of(config.Train) if "." in key),
    ]
    assert "\ntarget: The unlabelled domain" in text
    assert "  compile=false " in text, "as it can be typed"
    assert "  source.scale=[1.0,1.0] " in text


def test_the_whole_text_of_a_setting_is_asked_for_by_its_name(tmp_path: Path) -> None:
    [told] = [one for one in describe(config.Train) if one[0] == "loader.workers"]
    done = esl_dist("train", "--help", "loader.workers", folder=tmp_path)
    assert done.stdout == f"  loader.workers ({told[1]}; {told[2]})\n      {told[3]}\n"


def test_a_name_that_no_setting_has_is_told_above_all_settings() -> None:
    told = help_of("predict", COMMANDS["predict"], ["nosuch"])
    assert told.startswith("no setting has 'nosuch' in its name; all settings:\n\nusage: esl-dist predict ")
    assert help_of("predict", COMMANDS["predict"]).startswith("usage: ")


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--config", "demo/advent", "--help"],
        ["train", "--help", "--config", "demo/advent"],
        ["report", "experiments/snapshots/advent", "-h"],
        ["doctor", "train", "--help"],
    ],
)
def test_other_words_beside_help_are_no_names_of_settings(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert start._asked(words) is None
    assert capsys.readouterr().out.startswith(f"usage: esl-dist {words[0]} ")


def test_an_empty_word_behind_help_is_in_every_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert start._asked(["predict", "--help", ""]) is None
    told = capsys.readouterr().out
    assert all(f"  {key} (" in told for key, *_ in describe(config.Predict))


def test_the_text_on_methods_names_each() -> None:
    [told] = [one for one in describe(config.Train) if one[0] == "method.name"]
    assert {name for name in METHODS if f"`{name}`" in told[3]} == set(METHODS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "command line: unknown command 'trian'; the nearest known one is 'train'"),
        (["pseudo_label"], "command line: unknown command 'pseudo_label'; the nearest known one is 'pseudo-label'"),
        (["Train"], "command line: unknown command 'Train'; the nearest known one is 'train'"),
        (["prepare"], "command line: unknown command 'prepare'; the nearest known one is 'pack'"),
        (
            ["nosuch"],
            "command line: unknown command 'nosuch'; known are pack, train, pseudo-label, evaluate, predict, ",
        ),
        (["--hlep"], "command line: No such option"),
        (["train", "bach_size=4"], "bach_size=4: unknown setting 'bach_size'; the nearest known one is 'batch_size'"),
        (["train", "--batch_size", "4"], "'--batch_size' is not of the form key=value; write batch_size=4"),
        (["train", "--config", "demo/advnet"], "demo/advnet: no such configuration file; the nearest recipe is demo/"),
        (["pack", "dataset=toytwon", "split=s", "output=o"], "toytwon: no such configuration file; the nearest data"),
        (["completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
    ],
)
def test_a_mistake_is_one_line_with_the_near_name(words: list[str], message: str, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    done = esl_dist(*words, folder=tmp_path, **{STATE_FILE: str(state)})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    noted = read_state(state)
    program = {"--hlep": "esl-dist", "pack": "prepare"}.get(words[0], words[0].replace("-", "_"))
    assert (noted.program, noted.exit_code) == (program, 2)


ANSWERS = [["--help"], ["predict", "--help"], ["recipes"], ["completion", "bash"]]


@pytest.mark.parametrize("words", ANSWERS, ids=" ".join)
def test_an_answer_is_printed_in_every_encoding_and_noted_as_finished(words: list[str], tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    done = esl_dist(*words, folder=tmp_path, PYTHONIOENCODING="ascii", **{STATE_FILE: str(state)})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
    noted = read_state(state)
    program = "esl-dist" if words == ["--help"] else words[0]
    assert (noted.program, noted.state, noted.exit_code) == (program, "finished", 0)


def answered_to(output: BinaryIO | int, words: Sequence[str], folder: Path) -> tuple[int, str]:
    """Return the exit code of a command that answers to a stream, and what it says on standard error."""
    line = [*COMMAND, *words]
    done = subprocess.run(
        line, cwd=folder, env=environment(), stdout=output, stderr=subprocess.PIPE, text=True, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("words", ANSWERS, ids=" ".join)
def test_an_answer_that_nobody_reads_is_no_failure(words: list[str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert answered_to(writing, words, tmp_path) == (0, "")
    finally:
        os.close(writing)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", ANSWERS, ids=" ".join)
def test_an_answer_that_no_disk_takes_is_refused_in_one_line(words: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        assert answered_to(full, words, tmp_path) == (2, "error: standard output: No space left on device\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_program_has_one_name_as_a_command_and_as_a_script(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["esl-dist", name])
    assert called.program() == COMMANDS[name].program


def test_words_that_are_no_settings_are_the_list_of_a_command_that_takes_one() -> None:
    words = ["a b", "output=r.html", "c", "--config", "f", "--help", "d"]
    assert start._with_list(words, None) == words
    first, *others = start._with_list(words, "runs")
    assert json.loads(first.removeprefix("runs=")) == ["a b", "c", "d"]
    assert others == ["output=r.html", "--config", "f", "--help"]
    assert start._with_list(["output=r.html"], "runs") == ["output=r.html"]
    assert start._with_list(["a", "--output", "r.html"], "runs") == ['runs=["a"]', "--output", "r.html"]
    with pytest.raises(UserError, match="runs are given as words and as runs=…; choose one way"):
        start._with_list(["a", "runs=[b]"], "runs")


def test_recipes_are_listed(tmp_path: Path) -> None:
    listed = esl_dist("recipes", folder=tmp_path).stdout.split()
    files = [*PROJECT.glob("configs/*/*.yaml")]
    assert listed == sorted(f"{file.parent.name}/{file.stem}" for file in files if file.parent.name != "datasets")


def test_the_documentation_says_which_command_has_which_script() -> None:
    rows = [line.split("|")[1:3] for line in (PROJECT / "docs/command_line.md").read_text().splitlines() if "|" in line]
    names, scripts = ([re.findall(r"`(?:esl-dist |[a-z]+/)?([^`]+)`", row[side]) for row in rows] for side in (0, 1))
    there = {file.name for folder in ("launch", "shards") for file in (PROJECT / folder).glob("*.py")}
    told = {name: script for row in zip(names, scripts, strict=True) for name, script in zip_longest(*row)}
    script_of = {name: f"{COMMANDS[name].program}.py" for name in COMMANDS}
    assert told == {name: script if script in there else None for name, script in script_of.items()}


def test_the_command_trains_on_several_ranks(town: Path, tmp_path: Path) -> None:
    words = ["train", *TINY_TRAINING, f"source.path={town}/source_train", f"target.path={town}/target_train"]
    server = shared_server()
    codes = server.run("esl_dist/__main__.py", [*words, "steps=1", f"experiments={tmp_path}", "name=r"], 2)
    assert codes == [0, 0], server.log.read_text()
    [record] = read_record(tmp_path / "snapshots/r" / RUN_RECORD)
    assert (record.processes, record.state, record.command[1]) == (2, "finished", "train")


@pytest.mark.grid
@pytest.mark.parametrize(
    "launcher",
    [
        ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "esl_dist"),
        ("accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "esl_dist"),
        ("accelerate.commands.launch", "--cpu", "--num_processes", "1", "--module", "esl_dist"),
    ],
)
def test_launchers_start_the_command(launcher: tuple[str, ...], town: Path, tmp_path: Path) -> None:
    words = [f"source.path={town}/source_train", f"target.path={town}/target_train", "steps=2", "name=r"]
    line = [sys.executable, "-m", *launcher, "train", *TINY_TRAINING, *words]
    done = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "experiments/snapshots/r/weights.safetensors").exists()
