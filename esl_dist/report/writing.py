"""The page: one HTML file with its style, its program and its data inside, which asks for nothing else.

What comes from disk is data: JSON in an element that is not run, with no `<` in it, shown as text. The page's own
policy lets nothing else be run or fetched: of programs only the one whose digest it names, of pictures only those
inside.
"""

import base64
import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from esl_dist.files import whole_file

MARK = b"<!doctype html>\n<!-- esl-dist report -->\n"
"""The beginning of every report, by which one is known."""

PROGRAM = ("dom", "charts", "runs", "rounds", "classes", "curves", "gallery", "settings", "main")
"""Files of the page's program, in the order in which they are needed."""


def page(content: Any) -> str:
    """Return the page that shows what `gathering.gathered` found, with the gallery as `gallery`."""
    folder = files("esl_dist.report") / "page"
    style, template = ((folder / name).read_text(encoding="utf-8") for name in ("report.css", "report.html"))
    program = '"use strict";\n' + "\n".join((folder / f"{name}.js").read_text(encoding="utf-8") for name in PROGRAM)
    digest = base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    parts = {"{{policy}}": policy, "{{style}}": style, "{{program}}": program, "{{data}}": as_data(content)}
    # Once over the template, for what is put in may hold such a name, too.
    before, *pieces = template.split("{{")
    filled = [before]
    for piece in pieces:
        name, _, rest = piece.partition("}}")
        filled += [parts["{{" + name + "}}"], rest]
    return MARK.decode() + "".join(filled)


def as_data(content: Any) -> str:
    """Return JSON that may stand in an element of HTML: nothing in it ends the element."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def write_page(file: Path, content: Any) -> None:
    """Write the page, whole or not at all."""
    with whole_file(file) as opened:
        # A name that is no Unicode becomes a question mark; such a byte would make the page unreadable.
        opened.write(page(content).encode("utf-8", errors="replace"))


def is_report(file: Path) -> bool:
    """Say whether a file is a report."""
    with open(file, "rb") as opened:
        return opened.read(len(MARK)) == MARK
