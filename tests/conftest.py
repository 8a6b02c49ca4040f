"""Tests compute on the processor, where the same bits are promised; one that needs a GPU asks for it.

With ESL_TEST_DEVICE=cuda, those of tests/reference compute on the GPU.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.on_ranks import close_shared_server
from tests.programs import small_town

ACCELERATE = "ACCELERATE_"
CHROMIUM = "/usr/bin/chromium"
CHROMIUM_WORDS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
)
VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")
if os.environ.get("ESL_TEST_DEVICE", "cpu") == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def as_started_by_no_launcher() -> Iterator[None]:
    """Take from the environment what Accelerate leaves there in a process that has used it."""
    before = {name for name in os.environ if name.startswith(ACCELERATE)}
    yield
    for name in [name for name in os.environ if name.startswith(ACCELERATE) and name not in before]:
        del os.environ[name]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes that a test starts see the GPU."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("there is no GPU")
    if VISIBLE is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", VISIBLE)


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the shards of 6 source and 6 target scenes; no test changes it."""
    return small_town(tmp_path_factory.mktemp("town"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Return Chromium without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra `test` has playwright")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_WORDS)
        yield chromium
        chromium.close()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", metavar="K/N", help="of the chosen tests every N-th, from the K-th on")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave a part of the tests, after markers and names have chosen among them."""
    if (part := config.getoption("part")) is None:
        return
    numbers = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", part)
    if numbers is None or int(numbers[1]) > int(numbers[2]):
        raise pytest.UsageError(f"--part {part}: expected K/N with K from 1 to N")
    first, every = int(numbers[1]) - 1, int(numbers[2])
    config.hook.pytest_deselected(items=[item for place, item in enumerate(items) if place % every != first])
    items[:] = items[first::every]


def pytest_sessionfinish() -> None:
    close_shared_server()
