"""Doctor as a program: its words, its exit codes, and what it says on a machine that gives little."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from esl_dist.config import Doctor, Train
from esl_dist.config_files import load_config
from esl_dist.errors import UserError
from esl_dist.programs.doctor import main, words_of_doctor
from tests.builders import drawn_samples, write_shards
from tests.on_ranks import PROJECT
from tests.programs import environment


def asked(*words: str) -> Doctor:
    return load_config(Doctor, None, words_of_doctor(words))


def test_words_of_the_program_are_told_from_those_of_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPS", "7")
    words = ["source.path=a b", "source.size=[64,32]", 'name=a"b\\', "steps=${oc.env:STEPS}", "experiments=x/${seed}"]
    config = asked("train", "--config", "recipe.yaml", "processes=3", *words)
    assert config == Doctor("train", "recipe.yaml", words, 3)
    program = load_config(Train, None, config.settings)
    assert (program.source.size, program.name, program.steps) == ([64, 32], 'a"b\\', 7)
    assert program.experiments == "x/0"
    assert asked("pseudo-label", "--config=r.yaml") == Doctor("pseudo-label", "r.yaml")
    assert words_of_doctor(["--help"]) == ["--help"]
    for word in ("trian", "predict"):
        with pytest.raises(UserError, match=f"doctor: '{word}': expected train, pseudo-label, evaluate, the programs"):
            words_of_doctor([word, "x=1"])


def test_a_mistake_in_the_call_is_refused_and_no_finding(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^command line: stepps"):
        main(asked("source.path=x", "stepps=3"))
    with pytest.raises(UserError, match="no such configuration file"):
        main(asked("--config", str(tmp_path / "none.yaml")))


def test_a_program_or_a_number_of_processes_needs_the_settings_that_are_to_run() -> None:
    for words, missing in ((["evaluate"], "data.path"), (["processes=3"], "source.path"), (["train"], "source.path")):
        with pytest.raises(UserError, match=rf"no value for {missing}"):
            main(asked(*words))


def test_two_recipes_are_refused() -> None:
    with pytest.raises(UserError, match=r"^command line: --config is given 2 times; expected one file$"):
        words_of_doctor(["--config", "demo/advent", "--config=demo/minent"])


def test_the_machine_alone_can_be_asked_about(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(asked()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[-1]) == ("this machine", "can run")
    subjects = [line[9:].split("  ")[1].strip() for line in lines[1:-1]]
    for subject in ("packages", "processors", "memory", "/dev/shm", "open files", "TMPDIR", "experiments", "launcher"):
        assert subject in subjects


def test_of_the_processes_of_a_machine_one_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, is_said in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        main(asked())
        assert ("this machine" in capsys.readouterr().out) is is_said


def test_on_a_machine_that_gives_little_every_want_is_told_and_the_exit_code_says_no(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this system does not let a user mount a small file system")
    size = {"image_size": (16, 12), "label_size": (16, 12)}
    for domain in ("source", "target"):
        write_shards(tmp_path / domain, drawn_samples(3), split=domain, **size)
    experiments, temporary = tmp_path / "experiments", tmp_path / ("long_" * 25)
    experiments.mkdir()
    temporary.mkdir()
    program = [f"{one}.path={tmp_path}/{one}" for one in ("source", "target")]
    program += ["network.architecture=tiny", "batch_size=2", "loader.workers=9", f"experiments={experiments}", "name=r"]
    words = ["doctor", "--config", "demo/advent", *program, "method.name=minent"]
    script = f"mount -t tmpfs -o size=4m tmpfs {experiments} && mount -t tmpfs -o size=100k tmpfs /dev/shm || exit 99; "
    call = "ulimit -n 40; " + shlex.join([sys.executable, "-m", "esl_dist", *words])
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script + call],
        capture_output=True,
        text=True,
        env={**environment(), "TMPDIR": str(temporary), "PYTHONPATH": str(PROJECT)},
        timeout=200,
    )
    assert (done.returncode, done.stderr) == (1, "")
    levels = {tuple(line.split()[:2]): line for line in done.stdout.splitlines()}
    assert re.search(rf"{experiments}: at most \d+ of .* MB are free; make room", levels["problem", "checkpoints"])
    assert re.search(r"opens some \d+ files, and may open 40: raise", levels["problem", "open"])
    assert f"{len(str(temporary))} bytes" in levels["note", "TMPDIR"]
    assert "102 kB" in levels["ok", "/dev/shm"]
    assert done.stdout.splitlines()[-1] == "cannot run: 2 problems"
