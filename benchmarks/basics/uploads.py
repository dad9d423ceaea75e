"""What a checkpoint of several gigabytes costs the gateway that passes it on: memory while it comes, and its speed.

Into a folder, and into S3 in parts. There the other end is a sink, which answers as S3 does and keeps nothing: moto's
server would hold all of it in memory.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import httpx

from tests.servers.gateway import Gateway
from tests.servers.processes import memory_bytes

SIZE = 7 * 10**9  # bytes: SDXL in one file
CHUNK = 4 * 2**20  # bytes read at once; after each the gateway's memory is looked at
CHECKPOINT = {"asset_type": "checkpoint", "data_type": "fp16", "engine": "image/stable-diffusion-xl-v1-0"}


def measure(quick: bool) -> dict[str, Any]:
    """The gateway's memory and the speed of an upload, for each store."""
    size = SIZE // 10 if quick else SIZE
    with tempfile.TemporaryDirectory() as name, sink() as (endpoint, received):
        folder = Path(name)
        file = folder / "sparse"
        with file.open("wb") as sparse:
            sparse.truncate(size)
        bucket = {
            "TUNESMITH_OBJECTS_URL": "s3://bench",
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_REGION": "us-east-1",
        }
        figures = {"folder": put(file, folder / "a", {}), "s3": put(file, folder / "b", bucket)}
        return {"size_mb": size / 1e6, **figures, "the_sink_received_mb": received[0] / 1e6}


def put(file: Path, folder: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """One upload through one gateway."""
    with Gateway(f"sqlite:///{folder / 'bench.db'}", folder, environment) as gateway, gateway.client() as client:
        body = {"asset_type": "checkpoint", "name": "sparse", "data": CHECKPOINT}
        put_url = client.post("/v1/assets", json=body).json()["transfer_api"]["put_url"]
        assert put_url.startswith(gateway.ready["http"])
        before, most = memory_bytes(gateway.process.pid), [0]
        started = time.monotonic()
        response = httpx.put(put_url, content=watched(file, gateway.process.pid, most), timeout=600)
        seconds = time.monotonic() - started
        assert response.status_code == 200, response.text
        return {
            "memory_before_mb": round(before / 1e6, 1),
            "most_memory_mb": round(most[0] / 1e6, 1),
            "mb_a_second": round(file.stat().st_size / 1e6 / seconds, 1),
        }


def watched(file: Path, pid: int, most: list[int]) -> Iterator[bytes]:
    """The file's bytes; `most` becomes the most memory that the process has had meanwhile."""
    with file.open("rb") as source:
        while chunk := source.read(CHUNK):
            yield chunk
            most[0] = max(most[0], memory_bytes(pid))


@contextmanager
def sink() -> Iterator[tuple[str, list[int]]]:
    """An endpoint that takes uploads in parts as S3 does and keeps nothing; and how many bytes it has taken."""
    received, counting = [0], Lock()

    class Sink(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            """An empty listing: of all that is asked for at the start."""
            self._answer(b"<ListBucketResult><Name>bench</Name><IsTruncated>false</IsTruncated></ListBucketResult>")

        def do_POST(self) -> None:
            """An upload begins, or ends."""
            self._take()
            if re.search(r"\buploads\b", self.path):
                self._answer(b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>")
            else:
                self._answer(b"<CompleteMultipartUploadResult><ETag>whole</ETag></CompleteMultipartUploadResult>")

        def do_PUT(self) -> None:
            """A part."""
            size = self._take()
            with counting:
                received[0] += size
            self._answer(b"")

        def _take(self) -> int:
            size = left = int(self.headers.get("content-length", 0))
            while left:
                left -= len(self.rfile.read(min(left, CHUNK)))
            return size

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"part"')
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Sink) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()
