"""The documentation as a site: README.md and the pages of docs/ as they lie, built by Sphinx (`make docs`).

The folder of the sources is the project itself, so a link between two pages is the same one here and where the
repository is read. The navigation below is the only thing that the pages do not hold.
"""

import shutil
from pathlib import Path

from sphinx.application import Sphinx

PROJECT = Path(__file__).resolve().parent.parent

NAVIGATION = {
    "Start": ("docs/own_data", "docs/gta5_cityscapes", "docs/results"),
    "Use": (
        "docs/command_line",
        "docs/watching",
        "docs/predicting",
        "docs/onnx",
        "docs/report",
        "docs/doctor",
        "docs/running",
        "docs/cluster",
        "docker/README",
        "docs/configuration",
        "shards/README",
        "docs/published",
    ),
    "Trust": ("docs/guarantees", "docs/comparison", "docs/scaling", "docs/performance", "docs/accuracy"),
    "Carry on": ("docs/design", "docs/contributing", "benchmarks/README", "benchmarks/gpu/README"),
}
"""Heading → its pages. A page that no heading has is an error."""

FOLDERS = ("docs", "shards", "docker", "benchmarks")

project = "ESL-Dist"
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["README.md", *(f"{folder}/**.md" for folder in FOLDERS)]
# What has no pages is not searched for any: data, runs and environments may be large.
exclude_patterns = [path.name for path in PROJECT.iterdir() if path.name not in ("README.md", *FOLDERS)]
myst_heading_anchors = 3
highlight_language = "text"
html_theme = "furo"
html_title = "ESL-Dist"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False


def add_navigation(_app: Sphinx, page: str, content: list[str]) -> None:
    """Add to the README what the side of each page shows."""
    if page != root_doc:
        return
    for heading, pages in NAVIGATION.items():
        entries = "\n".join(f"/{name}" for name in pages)
        content[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{entries}\n```\n"


def name_index(app: Sphinx, error: Exception | None) -> None:
    """Have the README be the page that a server and a folder open first."""
    if error is None and app.builder.format == "html":
        shutil.copyfile(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> None:
    """Take part in the build."""
    app.connect("source-read", add_navigation)
    app.connect("build-finished", name_index)
