"""URLs of folders of shards: which texts are URLs, what may stand in one, and where a file of the folder lies.

A URL is written to logs, checkpoints and `run.json` as it was given, so one that may hold a secret is refused. It stays
what it is: the two schemes below, no command in a pipe, no file of this machine, no name that leads to another host.
"""

import re
from urllib.parse import quote, urlsplit

SCHEMES = ("http", "https", "s3")

EXPECTED = "expected a folder, or one far away: http://…, https://… or s3://bucket/…"

SAFE = "/%:!$&'()*+,;=~"
"""Signs of a URL's path that mean something, or that were escaped by whoever gave it."""

BEGINNING = re.compile(r":/+|\b(?:https?|s3):/*", re.IGNORECASE)
"""Of what may hold a secret, a mistyped URL's, too."""

LIKE_A_URL = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def is_url(text: str) -> bool:
    """Say whether a text is meant as a URL, allowed or not; no path is written like that."""
    return "://" in text


def is_like_url(text: str) -> bool:
    """Say whether a text begins as a URL does, as `http:/host` and `pipe:…` do; a path may, too."""
    return LIKE_A_URL.match(text) is not None


def without_secrets(text: str) -> str:
    """Return a text with what may be a user, a password or a token in its URLs left out."""
    begun = BEGINNING.search(text)
    if begun is None:
        return text
    # A secret may hold any sign, / and blanks as well: it goes up to the last @, and behind the first ? or #.
    _, at, rest = text[begun.end() :].rpartition("@")
    shown, *token = re.split("[?#]", rest, maxsplit=1)
    return f"{text[: begun.end()]}{'…@' if at else ''}{shown}{'?…' if token else ''}"


def problem_of_url(url: str) -> str | None:
    """Say why a URL cannot be that of a folder of shards; None: it can."""
    if "@" in url:
        # Wherever it stands: a password may hold a slash, and then the host seems to end before it.
        return (
            "it holds an @, and before it perhaps a user or a password, which logs and checkpoints would hold, too; "
            "leave them out and give them in ~/.netrc or, for s3, in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
            "~/.aws (an @ of a path is written %40 in http)"
        )
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        # Its words may repeat a part of a secret.
        return f"{EXPECTED}; behind :// stands a host, and perhaps : and the number of a port"
    if parts.scheme in SCHEMES and not url.startswith(parts.scheme):
        return f"{EXPECTED}; write {parts.scheme}:// in small letters"
    is_host = bool(parts.hostname) and parts.netloc.isascii()
    if parts.scheme not in SCHEMES or not is_host or not url.startswith(f"{parts.scheme}://"):
        return EXPECTED
    if "?" in url or "#" in url:
        return f"{EXPECTED}; it is a folder's, without ? and #"
    return None


def file_of(folder: str, name: str) -> str:
    """Return the URL of the file `name`, which holds no `/`, of a folder."""
    parts = urlsplit(folder)
    if parts.scheme == "s3":
        # A key is bytes: nothing in it is escaped.
        return f"{folder.rstrip('/')}/{name}"
    return f"{parts.scheme}://{parts.netloc}{quote(parts.path.rstrip('/'), safe=SAFE)}/{quote(name, safe='')}"
