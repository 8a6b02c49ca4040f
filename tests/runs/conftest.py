"""What tests of a run's snapshots share."""

from pathlib import Path

import pytest

from esl_dist.runs import snapshots


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the place of a run that is not begun."""
    return tmp_path / "snapshots/r"


@pytest.fixture
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let those who wait for a snapshot lose no time."""
    monkeypatch.setattr(snapshots, "POLL_SECONDS", 0.005)
