"""Nothing about who reads a program's output ends the program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]

PRINTING = """
import sys
from esl_dist.early import make_streams_robust
make_streams_robust()
for _ in range(3):
    print("x" * 100_000, flush=True)
print("warning", file=sys.stderr, flush=True)
open("result", "w").write("done")
print("stra\\xdfe \\udcff \\u221e")
"""


def started(code: str, folder: Path, **variables: str) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), **variables}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=environment, stdout=pipe, stderr=pipe)


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_stream_that_nobody_reads_stops_nothing(tmp_path: Path, closed: str) -> None:
    process = started(PRINTING, tmp_path)
    stream = getattr(process, closed)
    stream.close()
    setattr(process, closed, None)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert b"Traceback" not in (errors or b"")
    assert (tmp_path / "result").read_text() == "done"


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "utf-8:strict"},
    ],
)
def test_every_character_can_be_said_in_every_encoding(tmp_path: Path, variables: dict[str, str]) -> None:
    output, errors = (process := started(PRINTING, tmp_path, **variables)).communicate(timeout=60)
    assert process.returncode == 0, errors
    assert output.splitlines()[-1].startswith(b"stra")
    assert rb"\udcff" in output


def test_descriptors_that_are_closed_are_no_files_that_are_opened_later(tmp_path: Path) -> None:
    """A file that got the number 1 would hold what is printed."""
    code = f"import os, sys\nos.close(1)\nos.close(2)\nos.execv(sys.executable, [sys.executable, '-c', {PRINTING!r}])"
    process = started(code, tmp_path)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "result").read_text() == "done"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_named_once(tmp_path: Path) -> None:
    code = "from esl_dist.command_line import run_program\nfrom esl_dist.config import Demo\n"
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", f"{code}run_program(Demo, lambda config: print('x'))"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
        )
    assert (done.returncode, done.stderr) == (2, "error: standard output: No space left on device\n")


BEHIND_A_BAR = """
import sys
from esl_dist import command_line
from esl_dist.config import Demo
from esl_dist.errors import UserError
def main(config):
    sys.stderr.write("\\rscoring:  33%|###       | 1/3")
    sys.stderr.flush()
    raise UserError("a sample is corrupt")
sys.argv = ["demo"]
command_line.run_program(Demo, main)
"""


def test_a_message_begins_a_line_though_a_bar_does_not_end_its_own(tmp_path: Path) -> None:
    """Where a terminal is written to a log, `grep '^error'` is to find it."""
    _, errors = started(BEHIND_A_BAR, tmp_path).communicate(timeout=60)
    assert errors.decode().splitlines()[-1] == "error: a sample is corrupt"
    assert b"\nerror: " in errors
