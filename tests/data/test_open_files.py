"""Shards are read with few open files, and what the machine refuses is not taken for corrupt samples."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from esl_dist.data.loading import Samples, batches
from esl_dist.data.sampling import as_they_are
from esl_dist.data.shards import OPEN_SHARDS, open_shards
from esl_dist.data.workers import Workers
from esl_dist.errors import CorruptSampleError, UserError
from tests.builders import drawn_shards
from tests.grids import grid
from tests.programs import PROJECT

SHARDS = 3 * OPEN_SHARDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of more shards than are kept open, with a sample each."""
    return Path(drawn_shards(tmp_path_factory.mktemp("shards"), SHARDS, in_a_shard=1).folder)


def open_files() -> set[str]:
    return {file.path for file in psutil.Process().open_files()}


def test_the_shards_read_last_stay_open_and_no_others(folder: Path) -> None:
    reader = open_shards(folder)
    names = [str(folder / shard.name) for shard in reader.index.shards]
    expected = [reader.read(position, "image") for position in range(SHARDS)]
    assert open_files() & set(names) == set(names[-OPEN_SHARDS:])
    again = SHARDS - OPEN_SHARDS
    assert reader.read(again, "image") == expected[again]
    assert reader.read(0, "image") == expected[0]
    assert open_files() & set(names) == {names[0], names[again], *names[again + 2 :]}, "the one used longest ago closed"
    del reader
    assert not open_files() & set(names)


def test_a_forked_process_that_closes_its_files_leaves_those_of_its_parent(folder: Path) -> None:
    reader = open_shards(folder)
    expected = [reader.read(position, "image") for position in range(OPEN_SHARDS)]
    child = os.fork()
    if child == 0:
        for position in range(SHARDS):
            reader.read(position, "image")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert [reader.read(position, "image") for position in range(OPEN_SHARDS)] == expected


def read_all_with_few_files(folder: Path, spare: int) -> None:
    """Read every sample in a process that may open `spare` files more than it has."""
    reader = open_shards(folder)
    samples = Samples(reader, None, replace_corrupt=True)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + spare, hard))
    try:
        replaced = [bool(samples[position]["replaced"]) for position in range(len(samples))]
    except UserError as error:
        print(f"{type(error).__name__}: {error}")
    else:
        print(f"{replaced.count(True)} of {len(replaced)} replaced")


def in_a_process(folder: Path, spare: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import *; read_all_with_few_files(Path({str(folder)!r}), {spare})"],
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no warning of a corrupt sample"
    return done.stdout.strip()


@pytest.mark.parametrize("spare", grid([1, 3, OPEN_SHARDS], stay=[3]))
def test_more_shards_than_a_process_may_open_are_read(folder: Path, spare: int) -> None:
    assert in_a_process(folder, spare) == f"0 of {SHARDS} replaced"


def test_too_many_open_files_end_the_reading_and_are_no_corrupt_sample(folder: Path) -> None:
    found = in_a_process(folder, 0)
    assert found.startswith(
        f"UserError: {folder}/shard-000000.tar, sample 'scene_000': cannot be read (too many open files"
    )
    assert "raise the limit (ulimit -n" in found


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_for_another_reason_is_not_replaced(tmp_path: Path, workers: int) -> None:
    samples = Samples(drawn_shards(tmp_path, 4, in_a_shard=2), None, replace_corrupt=True)
    (tmp_path / "shard-000000.tar").unlink()
    (tmp_path / "shard-000000.tar").mkdir()
    with pytest.raises(UserError, match=r"^\S*000000\.tar, sample 'scene_001': cannot be read \(Is a directory\)") as e:
        list(batches(samples, as_they_are([[2], [1]]), Workers(workers, 1), pin_memory=False))
    assert not isinstance(e.value, CorruptSampleError)


def test_nor_is_it_passed_over_in_the_search_for_a_whole_sample(tmp_path: Path) -> None:
    samples = Samples(drawn_shards(tmp_path, 6, in_a_shard=2), None, replace_corrupt=True)
    os.truncate(tmp_path / "shard-000000.tar", 0)
    (tmp_path / "shard-000001.tar").unlink()
    (tmp_path / "shard-000001.tar").mkdir()
    with pytest.raises(UserError, match=r"000001\.tar, sample 'scene_002': cannot be read \(Is a directory\)"):
        samples[1]
