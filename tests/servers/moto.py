"""Runs moto's S3 server, a real S3 API on loopback. It checks neither the signature nor the expiry of a URL.

As a script it is that server: a process of its own, for moto brings all of boto3.
"""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path

import httpx

from tests.servers.daemon import Daemon


class Moto(Daemon):
    """One server with one empty bucket; what is put there is lost with it.

    Args:
        folder: For its log and its ready file.
    """

    bucket = "tunesmith-tests"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, ["-m", "tests.servers.moto"], {})

    def start(self, *, wait: bool = True) -> None:
        """Starts it, and makes the bucket."""
        super().start(wait=wait)
        httpx.put(f"{self.url}/{self.bucket}").raise_for_status()

    @property
    def url(self) -> str:
        """Its endpoint."""
        return str(self.ready["url"])

    def environment_of(self) -> dict[str, str]:
        """The AWS_* variables of whoever is to use it."""
        return self.environment_at(self.url)

    @staticmethod
    def environment_at(endpoint: str) -> dict[str, str]:
        """The same for any endpoint, such as a proxy's."""
        return {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "of-tunesmith",
            "AWS_REGION": "us-east-1",
        }

    def uploads_under_way(self) -> int:
        """Uploads in parts that are neither completed nor aborted."""
        return httpx.get(f"{self.url}/{self.bucket}?uploads").text.count("<UploadId>")


def main() -> None:
    """Serves until SIGTERM."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    ready = Path(os.environ["TUNESMITH_READY_FILE"])
    ready.with_suffix(".tmp").write_text(json.dumps({"url": f"http://{host}:{port}"}))
    ready.with_suffix(".tmp").rename(ready)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    os._exit(0)  # its threads serve on


if __name__ == "__main__":
    main()
