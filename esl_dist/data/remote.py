"""Files far away, by HTTP or S3: which version is there, and any part of its bytes, asked for again where that helps.

fsspec speaks the protocols, and finds proxies, ~/.netrc and the credentials of AWS as everybody's programs do. Its own
patience is switched off, and that of the libraries below it: one place counts the attempts and says how many there
were. Nothing is unpickled or run, and a redirection leads to HTTP or HTTPS alone.
"""

import os
import sys
import time
from collections.abc import Callable, Coroutine
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from esl_dist.errors import UserError, beginning
from esl_dist.urls import without_secrets

ATTEMPTS = 6
FIRST_PAUSE_SECONDS = 1.0
"""Before the second attempt; each further pause is twice as long: 31 seconds in all."""
CONNECT_SECONDS = 30
SILENCE_SECONDS = 30
"""How long a server may send nothing before an attempt has failed."""
PART_BYTES = 8 * 2**20
"""Asked for at once; what a lost connection costs."""
PART_SECONDS = 300.0
"""How long an attempt may take, and after which there is no further one: a server may send a byte now and then."""

MAY_PASS = (408, 425, 429)
"""Answers of the 400s that may be others in a moment."""
MISSING = (404, 410)
BEYOND_THE_END = 416
LIBRARIES = ("aiohttp", "botocore", "aiobotocore", "fsspec", "yarl")
"""Whose errors are those of a server, a network or a URL; those of the system are OSErrors."""
WILL_NOT_PASS = ("NoCredentialsError", "PartialCredentialsError", "PermissionError", "InvalidURL")


class Version(NamedTuple):
    """What a server says of a file without sending it; None where it does not say.

    `mark` is another where the file is another: ETag, time and size in one text.
    """

    size: int | None
    mark: str | None


def version_of(url: str, attempts: int = ATTEMPTS) -> Version:
    """Return which version of a file is there.

    Raises:
        FileNotFoundError: there is none.
        UserError: the server does not answer, or refuses; the message names the URL and the attempts.
    """
    known = _answer(url, lambda files: files._info(url), attempts)
    assert isinstance(known, dict)
    marks = [known.get(name) for name in ("ETag", "Last-Modified", "LastModified")]
    return Version(known.get("size"), f"{marks} {known.get('size')}" if any(marks) else None)


def whole_of(url: str, size: int | None, attempts: int = ATTEMPTS) -> bytes:
    """Return a file's bytes, `size` of them if that is known; raises as `version_of`."""
    content = bytearray()
    while (size is None or len(content) < size) and (part := part_of(url, len(content), PART_BYTES, attempts)):
        content += part
    return bytes(content)


def part_of(url: str, start: int, count: int, attempts: int = ATTEMPTS) -> bytes:
    """Return `count` bytes of a file from `start` on; raises as `version_of`.

    They are fewer where the server sends fewer, none behind the file's end, and the whole file, if that is asked for
    from its beginning, where the server knows no parts.
    """
    part = _answer(url, lambda files: files._cat_file(url, start=start, end=start + count), attempts)
    assert isinstance(part, bytes)
    return part if len(part) <= count or start == 0 else part[start : start + count]


def tell(text: str) -> None:
    """Print a line about what takes time to standard error, on the first rank."""
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _answer(url: str, ask: Callable[[Any], Coroutine[Any, Any, Any]], attempts: int) -> dict[str, Any] | bytes:
    """Return what fsspec answers, in the end; nothing where the part that is asked for lies behind the file's end."""
    files = _files(urlsplit(url).scheme, os.getpid())
    from fsspec.asyn import sync

    began = time.monotonic()
    for attempt in range(1, attempts + 1):
        try:
            answer: dict[str, Any] | bytes = sync(files.loop, ask, files, timeout=PART_SECONDS)
            return answer
        except Exception as error:
            if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in LIBRARIES:
                raise
            failure = error
        status, cause = _status(failure), failure.__cause__ or failure
        if status == BEYOND_THE_END:
            return b""
        if status in MISSING or (isinstance(failure, FileNotFoundError) and failure.__cause__ is None):
            raise FileNotFoundError(url) from failure
        if not _may_pass(cause, status):
            raise UserError(
                f"{url}: the server refuses it ({_words(cause, status)}); check the URL and your rights: ~/.netrc; for "
                "s3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or ~/.aws, or FSSPEC_S3_ANON=true for a public bucket"
            ) from failure
        seconds = time.monotonic() - began
        if attempt == attempts or seconds > PART_SECONDS:
            break
        pause = FIRST_PAUSE_SECONDS * 2 ** (attempt - 1)
        tell(f"warning: {url}: {_words(cause, status)}; attempt {attempt + 1} of {attempts} in {pause:g} s")
        time.sleep(pause)
    raise UserError(
        f"{url}: cannot be fetched ({_words(cause, status)}), after {attempt} attempts in {seconds:.0f} seconds"
        "; look whether the server runs and can be reached from this machine, then start again"
    ) from failure


# A connection does not outlive a fork.
@lru_cache(4)
def _files(scheme: str, process: int) -> Any:
    try:
        # Takes part of a second, which those whose shards lie here need not wait.
        import fsspec

        if scheme != "s3":
            from aiohttp import ClientTimeout

            timeout = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
            options: dict[str, Any] = {
                "client_kwargs": {"timeout": timeout, "trust_env": True},
                "headers": {"Accept-Encoding": "identity"},
                "encoded": True,
            }
        else:
            limits = {"connect_timeout": CONNECT_SECONDS, "read_timeout": SILENCE_SECONDS}
            options = {"config_kwargs": {**limits, "retries": {"max_attempts": 0}}, "use_listings_cache": False}
        files = fsspec.filesystem(scheme, skip_instance_cache=True, **options)
    except ImportError as error:
        raise UserError(
            f"{scheme}://…: to read shards from far away, packages are missing ({beginning(str(error), 80)}); install "
            "them: pip install -e '.[remote]'"
        ) from error
    if scheme == "s3":
        files.retries = 1
    return files


def _status(error: BaseException) -> int | None:
    """Return the number of a server's answer; fsspec gives the libraries' errors as causes of its own."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None) or {}
        metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        number = getattr(one, "status", None) or metadata.get("HTTPStatusCode")
        if number is not None:
            return int(number)
    return None


def _may_pass(cause: BaseException, status: int | None) -> bool:
    if status is not None:
        return status in MAY_PASS or status >= 500
    return type(cause).__name__ not in WILL_NOT_PASS


def _words(cause: BaseException, status: int | None) -> str:
    text = " ".join(str(getattr(cause, "message", "") or cause).split()) or type(cause).__name__
    return without_secrets(beginning(text if status is None else f"HTTP {status}: {text}", 200))
