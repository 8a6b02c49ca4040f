"""A program that a signal ends notes it first, whatever it is at; processes that it forks have signals of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from esl_dist.command_line import EXIT_INTERRUPTED, EXIT_LOST_RANK, EXIT_STOPPED
from esl_dist.early import STATE_FILE
from esl_dist.endings import PROGRAM, read_state
from esl_dist.stop_signals import leave

PROJECT = Path(__file__).resolve().parent.parent

SIGNALLED_AT_THE_FIRST_HEAVY_IMPORT = """
import os, runpy, signal, sys

class Sends:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "esl_dist.command_line"):
            os.kill(os.getpid(), int(sys.argv.pop(1)))

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Sends())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("program", ["launch/train", "launch/evaluate", "launch/pseudo_label", "shards/prepare"])
def test_a_signal_during_the_imports_is_noted(tmp_path: Path, program: str, number: signal.Signals) -> None:
    file = tmp_path / "state.json"
    words = [sys.executable, "-c", SIGNALLED_AT_THE_FIRST_HEAVY_IMPORT, f"{PROJECT / program}.py", str(int(number))]
    done = subprocess.run(words, env={STATE_FILE: str(file)}, capture_output=True, text=True, check=False)
    interrupted = number == signal.SIGINT
    assert done.returncode == (EXIT_INTERRUPTED if interrupted else -number), done.stderr
    noted = read_state(file)
    assert (noted.program, noted.exit_code) == (Path(program).name, EXIT_INTERRUPTED if interrupted else EXIT_STOPPED)
    assert noted.state == ("interrupted" if interrupted else "stopped")


@pytest.mark.parametrize(
    ("ranks", "number", "code"),
    [("2", signal.SIGTERM, EXIT_LOST_RANK), ("2", signal.SIGHUP, EXIT_STOPPED), ("1", signal.SIGTERM, EXIT_STOPPED)],
)
def test_a_signal_that_torchrun_sends_after_a_loss_is_not_taken_for_a_stop(
    tmp_path: Path, ranks: str, number: signal.Signals, code: int
) -> None:
    program = f"{PROJECT}/launch/evaluate.py"
    words = [sys.executable, "-c", SIGNALLED_AT_THE_FIRST_HEAVY_IMPORT, program, str(int(number))]
    variables = {STATE_FILE: str(tmp_path / "state.json"), "TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": ranks}
    assert subprocess.run(words, env={**variables, "RANK": "0"}, check=False).returncode == -number
    noted = read_state(tmp_path / "state.json")
    assert (noted.state, noted.exit_code) == ("stopped", code)
    assert noted.words.startswith(f"stopped by {number.name}")


FORKS = """
import os, signal
from esl_dist import endings, stop_signals
endings.begin()
stop_signals.note_stop_signals()
child = os.fork()
if child == 0:
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(0)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
"""


def test_a_signal_to_a_process_that_was_forked_ends_that_one_alone(tmp_path: Path) -> None:
    variables = {STATE_FILE: str(tmp_path / "state.json"), "PYTHONPATH": str(PROJECT)}
    words = [sys.executable, "-c", FORKS]
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=True)
    assert int(done.stdout) == -signal.SIGTERM
    assert read_state(tmp_path / "state.json").state == "running"


LEAVES = """
import atexit, signal, sys, threading
from esl_dist import stop_signals
from esl_dist.endings import PROGRAM
stop_signals.own_process()
PROGRAM.leaves_at_once = True
atexit.register(signal.pause)
release = threading.Event()
def write():
    release.wait()
    print("the checkpoint is written", flush=True)
threading.Thread(target=write).start()
print("words", end="")
threading.Timer(0.2, release.set).start()
stop_signals.leave(3)
"""


def test_a_process_that_leaves_at_once_writes_what_it_has_begun_and_then_waits_for_nothing() -> None:
    words = [sys.executable, "-c", LEAVES]
    done = subprocess.run(
        words, env={"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout == "wordsthe checkpoint is written\n"


def test_what_is_no_process_of_a_program_is_not_ended_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PROGRAM, "leaves_at_once", True)
    with pytest.raises(SystemExit) as end:
        leave(2)
    assert end.value.code == 2


SAVES_WHEN_STOPPED = """
import pathlib, signal, sys, time
def save(number, frame):
    # Longer than Python itself would wait for a program at Ctrl-C before it kills it.
    time.sleep(1)
    pathlib.Path("saved").write_text(signal.Signals(number).name)
    sys.exit(3)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, save)
print("begun", flush=True)
time.sleep(60)
"""
STARTER = "import os, sys; from esl_dist.stop_signals import run_to_its_end; run_to_its_end(sys.argv[1:], os.environ)"


@pytest.mark.parametrize(("number", "is_for_both"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_program_that_another_one_started_comes_to_its_own_end_first(
    tmp_path: Path, number: signal.Signals, is_for_both: bool
) -> None:
    words = [sys.executable, "-c", STARTER, sys.executable, "-c", SAVES_WHEN_STOPPED]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(
        words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == b"begun\n"
        (os.killpg if is_for_both else os.kill)(starter.pid, number)
        try:
            starter.communicate(timeout=60)
        finally:
            starter.kill()
    assert starter.returncode == -number
    assert (tmp_path / "saved").read_text() == number.name
