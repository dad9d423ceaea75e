"""An endpoint that takes and gives objects as S3 does, and keeps of each only its beginning and its size; what comes
after that is given as zeros. For uploads of little else that are too large for moto's server, which holds them all.

As S3 it knows parts, ranges, copies of parts, listings, and completion with If-None-Match; and no signature.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qsl, unquote, urlsplit

BUCKET = "sink"
BEGINNING = 64 * 1024  # bytes kept
CHUNK = 2**20  # bytes read or sent at once
ZEROS = bytes(CHUNK)


@dataclass(frozen=True)
class Kept:
    """What is left of some bytes."""

    beginning: bytes
    size: int

    def __add__(self, other: Kept) -> Kept:
        """Both, one after the other: what follows a beginning is zeros."""
        beginning = self.beginning if self.size >= BEGINNING else (self.beginning + other.beginning)[:BEGINNING]
        return Kept(beginning, self.size + other.size)

    def between(self, start: int, end: int) -> Iterator[bytes]:
        """Those bytes, in pieces."""
        if opening := self.beginning[start:end]:
            yield opening
        left = end - start - len(opening)
        while left > 0:
            yield ZEROS[: min(left, CHUNK)]
            left -= CHUNK


@dataclass
class Sink:
    """What was taken. Written by the server's threads, each of which takes or sets one entry at a time."""

    url: str = ""
    objects: dict[str, Kept] = field(default_factory=dict)
    uploads: dict[str, dict[int, Kept]] = field(default_factory=dict)
    received: int = 0
    """Bytes of all bodies."""
    ids: Iterator[int] = field(default_factory=itertools.count)

    def environment_of(self) -> dict[str, str]:
        """The variables of a gateway whose objects go there."""
        return {
            "TUNESMITH_OBJECTS_URL": f"s3://{BUCKET}",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": BUCKET,
            "AWS_SECRET_ACCESS_KEY": BUCKET,
            "AWS_REGION": "us-east-1",
        }


class _Answering(BaseHTTPRequestHandler):
    """One connection; `sink` is set by a subclass of each server's."""

    protocol_version = "HTTP/1.1"
    sink: Sink

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))

    @property
    def key(self) -> str:
        return _key_of(urlsplit(self.path).path)

    def do_HEAD(self) -> None:
        kept = self.sink.objects.get(self.key)
        self._say(404 if kept is None else 200, length=0 if kept is None else kept.size)

    def do_GET(self) -> None:
        if "list-type" in self.query:
            return self._answer(self._listing(self.query.get("prefix", "")))
        kept = self.sink.objects.get(self.key)
        if kept is None:
            return self._say(404)
        first, _, last = self.headers.get("range", f"bytes=0-{kept.size - 1}").removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last) + 1, kept.size)
        self._say(206, length=end - start, content_range=f"bytes {start}-{end - 1}/{kept.size}")
        for piece in kept.between(start, end):
            self.wfile.write(piece)
        return None

    def do_POST(self) -> None:
        taken = self._take()
        if "delete" in self.query:
            keys = re.findall(r"<Key>([^<]*)</Key>", taken.beginning.decode())
            for key in keys:
                self.sink.objects.pop(key, None)
            return self._answer(
                f"<DeleteResult>{''.join(f'<Deleted><Key>{key}</Key></Deleted>' for key in keys)}</DeleteResult>"
            )
        if "uploads" in self.query:
            id = f"upload-{next(self.sink.ids)}"
            self.sink.uploads[id] = {}
            return self._answer(
                f"<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
            )
        if self.headers.get("if-none-match") == "*" and self.key in self.sink.objects:
            return self._say(412)
        parts = self.sink.uploads.pop(self.query["uploadId"])
        self.sink.objects[self.key] = sum((parts[number] for number in sorted(parts)), Kept(b"", 0))
        return self._answer("<CompleteMultipartUploadResult><ETag>whole</ETag></CompleteMultipartUploadResult>")

    def do_PUT(self) -> None:
        taken = self._take()
        source = self.headers.get("x-amz-copy-source")
        if source is not None:
            taken = self.sink.objects[_key_of("/" + unquote(source).lstrip("/"))]
        if "partNumber" in self.query:
            self.sink.uploads[self.query["uploadId"]][int(self.query["partNumber"])] = taken
        else:
            self.sink.objects[self.key] = taken
        self._answer("" if source is None else "<CopyPartResult><ETag>part</ETag></CopyPartResult>")

    def do_DELETE(self) -> None:
        del self.sink.uploads[self.query["uploadId"]]
        self._say(204)

    def _take(self) -> Kept:
        size = left = int(self.headers.get("content-length", 0))
        beginning = b""
        while left:
            piece = self.rfile.read(min(left, CHUNK))
            if not piece:
                raise ConnectionAbortedError
            left -= len(piece)
            beginning = beginning or piece[:BEGINNING]
        self.sink.received += size
        return Kept(beginning, size)

    def _listing(self, prefix: str) -> str:
        found = [
            f"<Contents><Key>{key}</Key><Size>{kept.size}</Size><ETag>whole</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key, kept in sorted(self.sink.objects.items())
            if key.startswith(prefix)
        ]
        contents = "".join(found)
        return f"<ListBucketResult><Name>{BUCKET}</Name><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"

    def _answer(self, body: str) -> None:
        self._say(200, length=len(body))
        self.wfile.write(body.encode())

    def _say(self, status: int, *, length: int = 0, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", '"whole"')
        self.send_header("Last-Modified", formatdate(usegmt=True))
        if content_range is not None:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def _key_of(path: str) -> str:
    return unquote(path).removeprefix(f"/{BUCKET}").lstrip("/")


@contextmanager
def sink() -> Iterator[Sink]:
    """One that is served, in threads of this process."""
    made = Sink()
    answering = type("Answering", (_Answering,), {"sink": made})
    with ThreadingHTTPServer(("127.0.0.1", 0), answering) as server:
        server.daemon_threads = True
        made.url = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, daemon=True).start()
        yield made
        server.shutdown()
