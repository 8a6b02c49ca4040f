"""Checkpoints are written while training goes on, and what goes wrong with one costs the steps since the one before."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from esl_dist.command_line import EXIT_LOST_RANK, EXIT_USER_ERROR
from esl_dist.files import PARTIAL_SUFFIX
from esl_dist.runs.checkpoints import (
    checkpoint_folder,
    checkpoint_folders,
    step_of,
)
from tests.exact.trainings import (
    TRAIN,
    assert_same_bits,
    everything_learned,
    newest_step,
    run_in,
    start_training,
    train,
    training_words,
)
from tests.grids import grid
from tests.on_ranks import CHANGED, PROJECT, RankServer
from tests.programs import environment
from tests.training.small_runs import newest_whole, rewrite_as_version

pytestmark = pytest.mark.exact

STEPS = 6


@pytest.fixture(scope="module")
def whole(server: RankServer, town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with a checkpoint at every second step."""
    run = run_in(tmp_path_factory.mktemp("whole"))
    train(server, town, run, 1, f"steps={STEPS}", "checkpoints.every=2", "checkpoints.keep_newest=100")
    return run


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def empty(_: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [truncated, flipped, empty])
@pytest.mark.parametrize(
    "name", ["segmentation.safetensors", "discriminators.safetensors", "training.pt", "manifest.json"]
)
def test_damage_to_a_file_costs_the_steps_since_the_checkpoint_before(
    tmp_path: Path, whole: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    run = run_in(tmp_path)
    shutil.copytree(whole, run)
    file = checkpoint_folder(run, STEPS) / name
    file.write_bytes(damage(file.read_bytes()))
    assert newest_whole(run) == checkpoint_folder(run, STEPS - 2)


def test_a_changed_step_in_a_manifest_is_noticed(tmp_path: Path, whole: Path) -> None:
    run = run_in(tmp_path)
    shutil.copytree(whole, run)
    file = checkpoint_folder(run, STEPS) / "manifest.json"
    text = file.read_text()
    assert text.count(f'"step": {STEPS}') == 1
    file.write_text(text.replace(f'"step": {STEPS}', f'"step": {STEPS ^ 1}'))
    assert newest_whole(run) == checkpoint_folder(run, STEPS - 2)


def test_what_an_interrupted_and_a_damaged_save_left_does_not_change_the_end(
    server: RankServer, town: Path, tmp_path: Path, whole: Path
) -> None:
    run = run_in(tmp_path)
    shutil.copytree(whole, run)
    newest, before = checkpoint_folder(run, STEPS), checkpoint_folder(run, STEPS - 2)
    # Killed between two files of the newest, and a bit of the one before has turned over since.
    newest.rename(newest.with_name(newest.name + PARTIAL_SUFFIX))
    (newest.with_name(newest.name + PARTIAL_SUFFIX) / "training.pt").unlink()
    (before / "training.pt").write_bytes(flipped((before / "training.pt").read_bytes()))
    printed = train(server, town, run, 1, f"steps={STEPS}", "checkpoints.every=2", "checkpoints.keep_newest=100")
    assert f"passing over a broken checkpoint: {before / 'training.pt'}" in printed
    assert f"from step {STEPS - 4} to {STEPS}" in printed
    assert_same_bits(everything_learned(run), everything_learned(whole))
    assert not list((run / "checkpoints").glob(f"*{PARTIAL_SUFFIX}"))


def test_steps_go_on_while_a_checkpoint_is_written(server: RankServer, town: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path)
    words = training_words(town, run, "steps=4", "checkpoints.every=2")
    job = server.start("tests/exact/hold_save.py", [str(PROJECT / TRAIN), *words], 1)
    assert job.exit_codes() == [0], job.output()
    assert "the checkpoint of step 2 is written after step 4 began" in job.output()
    assert newest_whole(run) == checkpoint_folder(run, 4)


def steps_in(run: Path) -> list[int]:
    return [step_of(folder) for folder in checkpoint_folders(run)]


def test_a_broken_checkpoint_is_set_aside_when_the_run_goes_on_and_not_counted_among_the_newest(
    server: RankServer, town: Path, tmp_path: Path, whole: Path
) -> None:
    run = run_in(tmp_path)
    shutil.copytree(whole, run)
    broken = checkpoint_folder(run, STEPS)
    (broken / "training.pt").write_bytes(flipped((broken / "training.pt").read_bytes()))
    refused = start_training(server, town, run, 1, f"steps={STEPS + 1}", "seed=7")
    assert refused.exit_codes() == [EXIT_USER_ERROR], refused.output()
    assert broken in checkpoint_folders(run), "a start that is refused changes nothing"
    # Nothing is saved at the step of the broken one.
    printed = train(server, town, run, 1, f"steps={STEPS + 1}", "checkpoints.every=100", "checkpoints.keep_newest=2")
    assert f"setting a broken checkpoint aside: {broken}.broken" in printed
    assert steps_in(run) == [STEPS - 2, STEPS + 1]


LATE_LISTING = """
import functools
from esl_dist.runs import checkpoints
checkpoints.checkpoint_folders = functools.cache(checkpoints.checkpoint_folders)
"""
"""Every rank goes on seeing the folder as it was at the start, as on a file system of several machines."""


def test_a_broken_checkpoint_is_set_aside_by_one_rank_also_where_the_others_still_see_it(
    server: RankServer, town: Path, tmp_path: Path, whole: Path
) -> None:
    run = run_in(tmp_path)
    shutil.copytree(whole, run)
    broken = checkpoint_folder(run, STEPS)
    (broken / "training.pt").unlink()
    left = {path.name for path in broken.iterdir()}
    words = training_words(town, run, f"steps={STEPS}", "checkpoints.every=100", "checkpoints.keep_newest=100")
    job = server.start(CHANGED, [LATE_LISTING, str(PROJECT / TRAIN), *words], 2)
    assert job.exit_codes() == [0, 0], job.output()
    assert job.output().count("setting a broken checkpoint aside") == 1
    assert {path.name for path in broken.with_name(f"{broken.name}.broken").iterdir()} == left
    assert newest_whole(run) == broken


def of_another_format(checkpoint: Path) -> None:
    rewrite_as_version(checkpoint, 1)


def of_another_step(checkpoint: Path) -> None:
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps({**manifest, "step": manifest["step"] + 1}))


REASONS = {
    of_another_format: "format version 1, this program reads 2 and 3",
    of_another_step: "not the bytes that were saved",
}


@pytest.mark.parametrize(
    ("change", "ranks"), grid(product(REASONS, [1, 2]), stay=[(of_another_format, 2), (of_another_step, 1)])
)
def test_a_run_none_of_whose_checkpoints_can_be_used_is_not_begun_anew(
    server: RankServer,
    town: Path,
    tmp_path: Path,
    whole: Path,
    change: Callable[[Path], None],
    ranks: int,
) -> None:
    run = run_in(tmp_path)
    shutil.copytree(whole, run)
    for folder in checkpoint_folders(run):
        change(folder)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    job = start_training(server, town, run, ranks, f"steps={STEPS}", "checkpoints.keep_newest=1")
    assert job.exit_codes() == [EXIT_USER_ERROR] * ranks, job.output()
    errors = [line for line in job.output().splitlines() if line.startswith("error")]
    assert len(errors) == ranks, job.output()
    for error in errors:
        assert REASONS[change] in error
        assert "begin anew: train under another name or delete" in error
    assert {path: path.read_bytes() for path in before} == before
    assert steps_in(run) == [2, 4, STEPS]


def largest_file(run: Path, name: str) -> int:
    return (checkpoint_folder(run, STEPS) / name).stat().st_size


def assert_stands(run: Path, printed: str, ranks: int) -> None:
    """Make sure that a save that failed left a message, the checkpoint before and nothing else."""
    messages = [line for line in printed.replace("\r", "\n").splitlines() if line.startswith("error")]
    saves = [line for line in messages if "cannot be written" in line]
    assert len(messages) == len(saves) == ranks, printed
    assert "what was saved before stands: make room, then the same command goes on" in saves[0]
    assert str(run / "checkpoints/step-") in saves[0]
    assert "Traceback" not in printed
    newest = newest_whole(run)
    assert newest == checkpoint_folder(run, newest_step(run))
    assert not list((run / "checkpoints").glob(f"*{PARTIAL_SUFFIX}"))


@pytest.mark.parametrize(
    ("ranks", "name"),
    grid(
        [(1, "segmentation.safetensors"), (1, "training.pt"), (2, "training.pt")],
        stay=[(1, "segmentation.safetensors"), (2, "training.pt")],
    ),
)
def test_a_file_that_cannot_grow_ends_the_training_with_a_message_and_the_checkpoint_before(
    server: RankServer, town: Path, tmp_path: Path, whole: Path, ranks: int, name: str
) -> None:
    run = run_in(tmp_path)
    limit = largest_file(whole, name) - 1
    words = training_words(town, run, f"steps={STEPS}", "checkpoints.keep_newest=100")
    job = server.start("tests/exact/full_disk.py", [str(limit), str(PROJECT / TRAIN), *words], ranks)
    assert job.exit_codes() == [EXIT_USER_ERROR, EXIT_LOST_RANK][:ranks], job.output()
    assert_stands(run, job.output(), ranks)
    assert newest_step(run) == 2
    if ranks > 1:
        assert "error (rank 1): rank 0 ended: " in job.output()
    train(server, town, run, ranks, f"steps={STEPS}")
    if ranks == 1:
        assert_same_bits(everything_learned(run), everything_learned(whole))


IN_A_SMALL_FILE_SYSTEM = """
mount -t tmpfs -o size={kilobytes}k tmpfs {disk} || exit 99
"$@"; code=$?
cp -r {disk} {copy}
exit $code
"""


def test_a_full_disk_ends_the_training_with_a_message_and_the_checkpoint_before(
    town: Path, tmp_path: Path, whole: Path
) -> None:
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    sizes = [path.stat().st_size for path in checkpoint_folder(whole, STEPS).iterdir()]
    kilobytes = int(2.5 * sum(sizes) / 1000)
    script = IN_A_SMALL_FILE_SYSTEM.format(kilobytes=kilobytes, disk=disk, copy=copy)
    words = training_words(town, run_in(disk), f"steps={STEPS}", "checkpoints.keep_newest=100")
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare to mount a small file system")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", sys.executable, str(PROJECT / TRAIN), *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        timeout=200,
    )
    if not copy.exists():
        pytest.skip(f"this system does not let a user mount a small file system: {done.stderr.strip()}")
    assert done.returncode == EXIT_USER_ERROR, done.stdout + done.stderr
    assert_stands(run_in(copy), done.stderr.replace(str(disk), str(copy)), 1)
    assert newest_step(run_in(copy)) == 2
