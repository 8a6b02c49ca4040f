"""URLs of folders of shards: which texts are URLs, what may stand in one, and where a file of the folder lies.

A URL is written to logs, checkpoints and `run.json` as it was given, so one with a secret in it is refused. It stays
what it is: the two schemes below, no command in a pipe, no file of this machine, no name that leads to another host.
"""

import re
from urllib.parse import quote, urlsplit

SCHEMES = ("http", "https", "s3")

EXPECTED = "expected a folder, or one far away: http://…, https://… or s3://bucket/…"

SAFE = "/%:@!$&'()*+,;=~"
"""Signs of a URL's path that mean something, or that were escaped by whoever gave it."""

SECRET = re.compile(r"(?<=://)[^\s/]*@")


def is_url(text: str) -> bool:
    """Say whether a text is meant as a URL, allowed or not; no path is written like that."""
    return "://" in text


def without_secrets(text: str) -> str:
    """Return a text with what stands for user and password in its URLs left out."""
    return SECRET.sub("…@", text)


def problem_of_url(url: str) -> str | None:
    """Say why a URL cannot be that of a folder of shards; None: it can."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        return f"{EXPECTED} ({without_secrets(str(error))})"
    if parts.scheme not in SCHEMES or not parts.hostname or not url.startswith(f"{parts.scheme}://"):
        return EXPECTED
    if "@" in parts.netloc:
        return (
            "it holds a user or a password, which logs and checkpoints would hold, too; leave it out and give it in "
            "~/.netrc or, for s3, in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or ~/.aws"
        )
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
