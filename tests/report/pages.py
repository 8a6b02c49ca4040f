"""What a written report holds, read back from the file."""

import json
import re
from pathlib import Path
from typing import Any


def content_of(file: Path) -> Any:
    """Return the data of a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', file.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])
