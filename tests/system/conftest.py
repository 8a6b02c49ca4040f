"""What the tests of this folder share: a SLURM of two nodes."""

from collections.abc import Iterator

import pytest

from tests.system.slurm.cluster import Cluster, missing, running_cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if (lacks := missing()) is not None:
        pytest.skip(lacks)
    with running_cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started
