"""What all tests of this folder share: one process that starts ranks, a network that has seen a little, its labels."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.exact.launched import launch
from tests.exact.trainings import run_in, train
from tests.on_ranks import RankServer, shared_server

__all__ = ["launch"]


@pytest.fixture(scope="session")
def server() -> RankServer:
    return shared_server()


@pytest.fixture(scope="session")
def other_server() -> Iterator[RankServer]:
    """Return one that starts jobs while those of `server` run."""
    with RankServer() as started:
        yield started


@pytest.fixture(scope="module")
def teacher(server: RankServer, town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run of a network that has seen a few steps."""
    run = run_in(tmp_path_factory.mktemp("teacher"))
    train(server, town, run, 1, "steps=8")
    return run


@pytest.fixture(scope="module")
def pseudo_labels(server: RankServer, town: Path, teacher: Path) -> Path:
    """Return its pseudo-labels: some pixels, not all."""
    output = teacher.parent / "labels"
    words = [f"checkpoint={teacher}", f"target.path={town}/target_train", f"output={output}", "workers=0"]
    assert server.run("launch/pseudo_label.py", words, 1) == [0], server.log.read_text()
    return output
