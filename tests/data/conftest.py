"""What tests of folders that are packed into share."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from esl_dist.data import packing
from esl_dist.data.layouts import Layout, read_layout
from tests.builders import SPLIT, write_pictures
from tests.data.packs import STREETS


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let packing start no other processes."""
    monkeypatch.setattr(packing, "worker_processes", lambda _: nullcontext(map))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Return five pictures and their labels."""
    return read_layout(write_pictures(tmp_path / "pictures", STREETS, width=48, height=32), SPLIT)
