"""zsh and fish complete what is typed, in shells that are used as a person does."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.commands import environment

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        shutil.which("zsh") is None or shutil.which("fish") is None, reason="zsh and fish are not installed"
    ),
]

LONGEST = 60.0
"""Seconds until an answer of a shell."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with two folders and a file in it; the command is on the path."""
    commands = tmp_path / "bin"
    commands.mkdir()
    command = commands / "esl-dist"
    command.write_text(f"#!{sys.executable}\nfrom esl_dist.__main__ import main\nmain()\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    # Of the person who runs the tests, neither settings nor histories.
    monkeypatch.setenv("HOME", str(tmp_path))
    place = tmp_path / "place"
    for name in ("pictures", "a=b"):
        (place / name).mkdir(parents=True)
    (place / "described.yaml").touch()
    return place


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("tr", "train"),
        ("train batch_si", "batch_size="),
        ("train --config gta5_cityscapes/advent_", "gta5_cityscapes/advent_esl"),
        ("train precision=b", "precision=bf16"),
        ("predict save=[raw_ids,tr", "save=[raw_ids,train_ids"),
        # Places: of folders, of any file, without a setting before them.
        ("pack root=pi", "root=pictures/"),
        ("pack dataset=./de", "dataset=./described.yaml"),
        ("pack dataset=a=", "dataset=a=b/"),
        ("report ./pi", "./pictures/"),
    ],
)
def test_fish_completes(folder: Path, typed: str, told: str) -> None:
    asked = f"source (esl-dist completion fish | psub); complete -C 'esl-dist {typed}'"
    done = subprocess.run(
        ["fish", "-c", asked],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=LONGEST,
    )
    assert done.stderr == ""
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [told]


@contextmanager
def zsh(folder: Path) -> Iterator[int]:
    """Give a terminal in which zsh waits for a command, with the completion read as the documentation says."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.execvpe("zsh", ["zsh", "-f", "-i"], {**environment(), "TERM": "dumb"})
    try:
        os.write(terminal, b'autoload -Uz compinit; compinit -u; eval "$(esl-dist completion zsh)"; echo "read"y\n')
        answer(terminal, "ready")
        yield terminal
    finally:
        os.close(terminal)
        os.waitpid(process, 0)


def answer(terminal: int, expected: str) -> str:
    """Return what a terminal shows until this stands in it."""
    shown, end = "", time.monotonic() + LONGEST
    while expected not in shown:
        assert select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0], shown
        shown += os.read(terminal, 4096).decode(errors="replace")
    return shown


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("tr", "train "),
        ("train batch_si", "batch_size="),
        ("train precision=b", "precision=bf16"),
        ("train --config gta5_cityscapes/advent_", "advent_esl"),
        ("pack root=pi", "root=pictures/"),
        ("pack root=a=", "root=a=b/"),
        ("pack dataset=./de", "dataset=./described.yaml"),
    ],
)
def test_zsh_completes(folder: Path, typed: str, told: str) -> None:
    with zsh(folder) as terminal:
        os.write(terminal, f"esl-dist {typed}\t".encode())
        # What is typed is shown first, as it is; what follows is the completion's.
        assert told in answer(terminal, told)
