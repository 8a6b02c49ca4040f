"""The documentation as a site, in Chromium: every page fits its window, says nothing and asks for nothing elsewhere."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[1]
LOCAL = ("file:", "data:")

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the pages of a site that is built for it."""
    folder = tmp_path_factory.mktemp("site")
    words = ["-m", "sphinx", "--quiet", "-d", str(folder / "doctrees"), "-c", "docs", ".", str(folder / "site")]
    subprocess.run([sys.executable, *words], cwd=PROJECT, check=True, capture_output=True)
    found = sorted((folder / "site").rglob("*.html"))
    assert len(found) > 20
    return found


# A phone, and where the theme changes how it lays out: without and with both sides, and with larger letters.
@pytest.mark.parametrize("width", [390, 1100, 1344, 1400, 1600, 1920])
def test_every_page_fits_its_window(browser: Any, pages: list[Path], width: int) -> None:
    said: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if not request.url.startswith(LOCAL) else None)
    wider = []
    for file in pages:
        page.goto(file.as_uri())
        if page.evaluate("document.documentElement.scrollWidth") > width:
            wider.append(file.name)
    page.close()
    assert (wider, said) == ([], [])
