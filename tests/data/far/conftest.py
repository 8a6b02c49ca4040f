"""A folder of shards, a server of it, and a cache for what is fetched from there."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from esl_dist.data import remote
from esl_dist.data.cache import Cache
from esl_dist.data.shards import ShardReader
from tests.builders import drawn_shards
from tests.data.far.shards import SAMPLES
from tests.far_servers import FarServer, far_server


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE_SECONDS", 0.001)


@pytest.fixture
def near(tmp_path: Path) -> ShardReader:
    return drawn_shards(tmp_path / "there", SAMPLES)


@pytest.fixture
def far(near: ShardReader) -> Iterator[FarServer]:
    with far_server(Path(near.folder)) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 10**9, 1)
