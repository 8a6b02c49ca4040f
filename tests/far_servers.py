"""Servers far away, on loopback: one for HTTP that can be told to misbehave, and one for S3."""

import gzip
import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from urllib.request import urlopen

from tests.on_ranks import free_port

Answer = tuple[int, bytes] | None
"""Status and body in place of the file's."""


@dataclass
class FarServer:
    """An HTTP server of a folder.

    Attributes:
        folder: what it serves.
        asked: how often each file was asked for from its beginning, by method and name: `GET shard-000000.tar`.
        fault: called with method and name before a file is sent; returns what is sent in its place, or None.
        damage: changes what is sent of a file.
        knows_parts: whether parts of files may be asked for.
        password: what has to be given with each request, `user:password`; empty: nothing.
        hold: files that are sent only when they are not in here any more.
        cut: bodies that break off in their middle, still to come.
        ending: how one knows where a body ends: by its `length`, its `chunked` form, or as the connection is closed;
            `gzip`: by a length that is not the file's.
        pace: a body's bytes that are sent at once, and the seconds between.
    """

    folder: Path
    asked: Counter[str] = field(default_factory=Counter)
    fault: Callable[[str, str], Answer] = lambda method, name: None
    damage: Callable[[str, bytes], bytes] = lambda name, content: content
    knows_parts: bool = True
    hold: set[str] = field(default_factory=set)
    password: str = ""
    cut: int = 0
    ending: str = "length"
    pace: tuple[int, float] | None = None
    port: int = 0
    server: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def tars(self) -> dict[str, int]:
        """Return how often each tar was asked for from its beginning."""
        gets = {name.removeprefix("GET "): number for name, number in self.asked.items() if name.startswith("GET ")}
        return {name: number for name, number in gets.items() if name.endswith(".tar")}

    def start(self) -> None:
        far = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                far.answer(self)

            def do_HEAD(self) -> None:
                far.answer(self)

            def log_message(self, *words: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        # At the end, the answers that are still being given are waited for.
        self.server.daemon_threads = False
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        name = unquote(request.path).lstrip("/")
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", "")) if self.knows_parts else None
        start = int(part[1]) if part else 0
        if start == 0:
            self.asked[f"{request.command} {name}"] += 1
        while name in self.hold and start > 0:
            time.sleep(0.005)
        file = self.folder / name
        status, body, headers = 404, b"", dict[str, str]()
        given = request.headers.get("Authorization", "Basic ").removeprefix("Basic ")
        if self.password and b64decode(given).decode() != self.password:
            status = 401
        elif (fault := self.fault(request.command, name)) is not None:
            status, body = fault
        elif file.is_file():
            content = self.damage(name, file.read_bytes())
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            status, body = (206, content[start : int(part[2]) + 1]) if part else (200, content)
            status = 416 if part and start >= len(content) else status
        self.send(request, status, body, headers)

    def send(
        self, request: http.server.BaseHTTPRequestHandler, status: int, body: bytes, headers: Mapping[str, str]
    ) -> None:
        # Else a connection would outlive the server.
        request.close_connection = True
        request.send_response(status)
        request.send_header("Connection", "close")
        for key, value in headers.items():
            request.send_header(key, value)
        if status in (301, 302):
            request.send_header("Location", body.decode())
            body = b""
        ending = self.ending if status in (200, 206) else "length"
        if ending == "gzip":
            body = gzip.compress(body)
            request.send_header("Content-Encoding", "gzip")
        if ending == "chunked":
            request.send_header("Transfer-Encoding", "chunked")
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        elif ending != "close":
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "HEAD":
            return
        if self.cut and request.path.endswith(".tar"):
            self.cut -= 1
            body = body[: len(body) // 2]
        if self.pace is None or not request.path.endswith(".tar"):
            request.wfile.write(body)
            return
        at_once, seconds = self.pace
        with suppress(ConnectionError):
            for start in range(0, len(body), at_once):
                request.wfile.write(body[start : start + at_once])
                time.sleep(seconds)


@contextmanager
def far_server(folder: Path, **options: Any) -> Iterator[FarServer]:
    """Serve a folder by HTTP while the block runs."""
    server = FarServer(folder, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def s3_server(folder: Path, bucket: str) -> Iterator[dict[str, str]]:
    """Serve a folder's files by S3, as objects of a bucket; yields the environment that leads there."""
    import boto3

    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while True:
            try:
                urlopen(url).close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        keys = {"AWS_ACCESS_KEY_ID": "known", "AWS_SECRET_ACCESS_KEY": "unheard-of"}
        client = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="known", aws_secret_access_key="x"
        )
        client.create_bucket(Bucket=bucket)
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            client.upload_file(str(file), bucket, str(file.relative_to(folder)))
        yield {**keys, "AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1", "NO_PROXY": "127.0.0.1"}
    finally:
        process.kill()
        process.wait()


def without_keys() -> dict[str, str]:
    """Return this process's environment without anything of AWS."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
