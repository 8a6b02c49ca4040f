"""What continuous integration runs, in which order, and how it ends: the script itself, over targets of its own."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci/run"
ORDINARY = 2**31 - 1
"""Bits of the signals 1 to 31; of the others make takes two."""
SECONDS = 60
"""After which a script that waits for ever fails its test."""


@pytest.fixture(autouse=True)
def not_inside_of_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make test` runs these tests, and tells each make inside of it so."""
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        monkeypatch.delenv(name, raising=False)


def script(folder: Path, makefile: str) -> list[str]:
    """Return the command of a copy of the script in a folder where make has these targets; others do nothing."""
    (folder / ".ci").mkdir()
    shutil.copy(SCRIPT, folder / ".ci/run")
    (folder / "Makefile").write_text(f"{makefile}\n.DEFAULT:\n\t@echo $@\n")
    return [str(folder / ".ci/run")]


def test_large_grids_and_clusters_are_tested_beside_each_other_and_told_one_after_the_other(tmp_path: Path) -> None:
    # Whoever opens one end of a FIFO waits for the other: both run at once, or neither ends.
    for name in ("meeting", "earlier"):
        os.mkfifo(tmp_path / name)
    command = script(
        tmp_path,
        "test:\n\t@echo all that is small\n"
        "docs:\n\t@: > earlier\n"
        "test-browser:\n\t@: < earlier\n"
        "test-all:\n\t@echo a grid; : > meeting; echo the grid is done\n"
        "test-cluster:\n\t@echo a cluster; : < meeting; echo the cluster is done\n",
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    assert done.stdout.startswith("all that is small\n")
    assert "a grid\nthe grid is done\n" in done.stdout
    assert "a cluster\nthe cluster is done\n" in done.stdout


def test_a_thirty_second_of_the_large_tests_runs_which_one_by_the_time_of_the_commit(tmp_path: Path) -> None:
    command = script(tmp_path, "test-all test-cluster:\n\t@echo $@ $(PART)\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    for second, part in ((1600, "1/32"), (1601, "2/32"), (1631, "32/32")):
        when = {**os.environ, "GIT_AUTHOR_DATE": f"@{second} +0000", "GIT_COMMITTER_DATE": f"@{second} +0000"}
        subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message=m"], check=True, env=when)
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
        assert {f"test-all {part}", f"test-cluster {part}"} < set(done.stdout.splitlines())


@pytest.mark.parametrize("failing", ["test", "test-all", "test-cluster"])
def test_it_fails_if_one_fails_and_what_is_beside_it_still_runs(tmp_path: Path, failing: str) -> None:
    done = subprocess.run(
        script(tmp_path, f"{failing}:\n\t@false\n"), capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode != 0
    others = {"test-all", "test-cluster"} - {failing} if failing != "test" else set()
    assert {"test-all", "test-cluster"} & set(done.stdout.splitlines()) == others


@pytest.mark.parametrize("running", [("test",), ("test-all", "test-cluster")])
def test_a_signal_to_it_alone_ends_all_that_it_runs(tmp_path: Path, running: tuple[str, ...]) -> None:
    ours, theirs = os.pipe()
    command = script(tmp_path, "".join(f"{one}:\n\t@echo > /dev/fd/{theirs}; sleep 1000\n" for one in running))
    with open(tmp_path / "output", "w") as output:
        job = subprocess.Popen(command, stdout=output, stderr=output, pass_fds=[theirs])
    os.close(theirs)
    for _ in running:
        assert os.read(ours, 1) == b"\n"
    job.send_signal(signal.SIGTERM)
    assert job.wait(SECONDS) == 143
    # The end of what they can write: no process is left that could.
    assert os.read(ours, 1) == b""
    os.close(ours)


def test_what_it_runs_hears_every_signal_that_it_hears(tmp_path: Path) -> None:
    """Or tests of Ctrl-C would wait for ever: what a shell puts in the background ignores it."""
    own = ["grep", "SigIgn", "/proc/self/status"]
    command = script(tmp_path, f"test:\n\t@{' '.join(own)}\n")
    there, here = (
        subprocess.run(one, capture_output=True, text=True, timeout=SECONDS, check=True).stdout.split()[1]
        for one in (command, own)
    )
    assert int(there, 16) & ORDINARY == int(here, 16) & ORDINARY
