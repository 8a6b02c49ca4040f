"""What all tests of this folder share: one process that starts ranks, and a small Toytown."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.exact.ranks import RankServer
from tests.programs import small_town


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankServer]:
    with RankServer(tmp_path_factory.mktemp("server") / "log") as started:
        yield started


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the shards of 6 source and 6 target scenes; no test changes it."""
    return small_town(tmp_path_factory.mktemp("town"))
