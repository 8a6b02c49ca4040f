"""What tests of packing share."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from esl_dist.data.layouts import Layout

STREETS = [f"street_{number}" for number in range(5)]
"""Names of the pictures of the fixture `layout`."""


def as_read(layout: Layout, **changes: Any) -> Layout:
    """Return a layout whose files are read otherwise."""
    return replace(layout, reading=replace(layout.reading, **changes))


def contents(folder: Path) -> dict[str, str]:
    """Return the digest of every file in a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
