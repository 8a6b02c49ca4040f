"""Files far away, by HTTP or S3: which version is there, and any part of its bytes, asked for again where that helps.

fsspec speaks the protocols, and finds proxies, ~/.netrc and the credentials of AWS as everybody's programs do. Its own
patience is switched off, and that of the libraries below it: one place counts the attempts and says how many there
were. Nothing is unpickled or run, and a redirection leads to HTTP or HTTPS alone.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Coroutine
from functools import lru_cache
from itertools import count
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from esl_dist.errors import UserError, beginning
from esl_dist.urls import is_url, without_secrets

ATTEMPTS = 6
FIRST_PAUSE_SECONDS = 1.0
"""Before the second attempt; each further pause is twice as long: 31 seconds in all."""
CONNECT_SECONDS = 30
SILENCE_SECONDS = 30
"""How long a server may send nothing before an attempt has failed."""
PART_BYTES = 8 * 2**20
"""Asked for at once; what a lost connection costs."""
PART_SECONDS = 300.0
"""How long that may take, and after which there is no further attempt: a server may send a byte now and then."""
NOTE_SECONDS = 1.0

MAY_PASS = (408, 425, 429)
"""Answers of the 400s that may be others in a moment."""
MISSING = (404, 410)
MISSING_ATTEMPTS = 3
"""After which a file is missing: a server says so for a moment while a file is copied there again."""
BEYOND_THE_END = 416
LIBRARIES = ("aiohttp", "botocore", "aiobotocore", "fsspec", "yarl")
"""Whose errors are those of a server, a network or a URL; those of the system are OSErrors."""
WILL_NOT_PASS = {
    *("NoCredentialsError", "PartialCredentialsError", "PermissionError"),
    *("InvalidURL", "RedirectClientError", "ParamValidationError", "UnicodeError", "SSLCertVerificationError"),
}
"""Names of errors, or of the kinds they are."""


class Version(NamedTuple):
    """What a server says of a file without sending it; None where it does not say."""

    size: int | None
    etag: str | None
    modified: str | None


def version_of(url: str, attempts: int = ATTEMPTS) -> Version:
    """Return which version of a file is there.

    Raises:
        FileNotFoundError: there is none.
        UserError: the server does not answer, or refuses; the message names the URL and the attempts.
    """
    known = _answer(url, lambda files: asyncio.wait_for(files._info(url), PART_SECONDS), attempts)
    modified = known.get("Last-Modified") or known.get("LastModified")
    # Nothing that is asked for is empty: 0 is what some servers say that do not know.
    return Version(known.get("size") or None, known.get("ETag") or None, None if modified is None else str(modified))


def whole_of(url: str, size: int | None, attempts: int = ATTEMPTS) -> bytes:
    """Return a file's bytes, of one answer, `size` of them if that is known; raises as `version_of`."""
    return _bytes_of(url, slice(size), attempts, lambda: None)


def part_of(
    url: str, start: int, count: int, attempts: int = ATTEMPTS, note: Callable[[], None] = lambda: None
) -> bytes:
    """Return `count` bytes of a file from `start` on; raises as `version_of`.

    They are fewer where the server sends fewer, none behind the file's end, and the whole file, if that is asked for
    from its beginning, where the server knows no parts. That may take long: `note` is called every second, from
    another thread.
    """
    return _bytes_of(url, slice(start, start + count), attempts, note)


def tell(text: str) -> None:
    """Print a line about what takes time to standard error, on the first rank."""
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _bytes_of(url: str, part: slice, attempts: int, note: Callable[[], None]) -> bytes:
    """Return a part of a file, or all of it if the part has no beginning."""

    async def ask(files: Any) -> bytes:
        if urlsplit(url).scheme != "s3":
            return await _streamed(files, url, part, note)
        seconds = PART_SECONDS * (1 + ((part.stop or 0) - (part.start or 0)) // PART_BYTES)
        limits = {} if part.start is None else {"start": part.start, "end": part.stop}
        content: bytes = await asyncio.wait_for(files._cat_file(url, **limits), seconds)
        return content

    content: bytes = _answer(url, ask, attempts)
    return content


async def _streamed(files: Any, url: str, part: slice, note: Callable[[], None]) -> bytes:
    """Return bytes as `_bytes_of`, by HTTP; fsspec's own way does not say whether they are a part or the whole."""
    limits = {} if part.start is None else {"Range": f"bytes={part.start}-{part.stop - 1}"}
    session = await files.set_session()
    options = files.kwargs | {"headers": files.kwargs["headers"] | limits}
    asked = session.get(files.encode_url(url), **options)
    async with await asyncio.wait_for(asked, PART_SECONDS) as answer:
        if answer.status == BEYOND_THE_END and part.start == 0:
            # An empty file, or a server that takes no part at all.
            return await _streamed(files, url, slice(part.stop), note)
        answer.raise_for_status()
        content = await _received(answer, note)
        if answer.status == 206 and content:
            return content
        is_length_known = "Content-Length" in answer.headers or "Transfer-Encoding" in answer.headers
        if not is_length_known and len(content) < (part.stop or 0):
            raise ConnectionError(f"the answer ended after {len(content)} of {part.stop} bytes")
        return content[part.start : part.stop] if part.start else content


async def _received(answer: Any, note: Callable[[], None]) -> bytes:
    """Return an answer's bytes, unless each `PART_BYTES` take too long; silence is the library's to notice."""
    pieces, size, began = list[bytes](), 0, time.monotonic()
    noted = began
    async for piece in answer.content.iter_any():
        pieces.append(piece)
        size, now = size + len(piece), time.monotonic()
        if now - began > PART_SECONDS * (1 + size // PART_BYTES):
            raise TimeoutError(f"{size} bytes in {now - began:.0f} seconds are too few")
        if now - noted > NOTE_SECONDS:
            noted = now
            note()
    return b"".join(pieces)


def _answer(url: str, ask: Callable[[Any], Coroutine[Any, Any, Any]], attempts: int) -> Any:
    """Return what fsspec answers, in the end; nothing where the part that is asked for lies behind the file's end."""
    files = _files(urlsplit(url).scheme, os.getpid())
    from fsspec.asyn import sync

    began, missing = time.monotonic(), 0
    for attempt in count(1):
        try:
            return sync(files.loop, ask, files)
        except Exception as error:
            if not isinstance(error, OSError | UnicodeError) and type(error).__module__.split(".")[0] not in LIBRARIES:
                raise
            failure = error
        status, cause = _status(failure), failure.__cause__ or failure
        if status == BEYOND_THE_END:
            return b""
        is_missing = status in MISSING or (isinstance(failure, FileNotFoundError) and failure.__cause__ is None)
        missing += is_missing
        if missing == MISSING_ATTEMPTS:
            raise FileNotFoundError(url) from failure
        if not is_missing and not _may_pass(cause, status):
            raise UserError(
                f"{url}: the server refuses it ({_words(cause, status)}); check the URL and your rights: ~/.netrc; for "
                "s3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or ~/.aws, or FSSPEC_S3_ANON=true for a public bucket"
            ) from failure
        number, most = (missing, MISSING_ATTEMPTS) if is_missing else (attempt - missing, attempts)
        # Of the errors of this type, those of a network have other names.
        if number == most or type(cause) is TimeoutError:
            break
        pause = FIRST_PAUSE_SECONDS * 2 ** (number - 1)
        tell(f"warning: {url}: {_words(cause, status)}; attempt {number + 1} of {most} in {pause:g} s")
        time.sleep(pause)
    raise UserError(
        f"{url}: cannot be fetched ({_words(cause, status)}), after {attempt} attempts in "
        f"{time.monotonic() - began:.0f} seconds"
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
        files.retries, files.max_concurrency = 1, 1
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
    return WILL_NOT_PASS.isdisjoint(kind.__name__ for kind in type(cause).__mro__)


def _words(cause: BaseException, status: int | None) -> str:
    text = " ".join(str(getattr(cause, "message", "") or cause).split())
    if not text or is_url(text.split()[0]):
        # A URL alone does not say what is wrong with it.
        text = f"{type(cause).__name__} {text}".rstrip()
    return beginning(without_secrets(text if status is None else f"HTTP {status}: {text}"), 200)
