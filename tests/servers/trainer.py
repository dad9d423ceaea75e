"""Runs one trainer process against any gateways, without `tunesmith up`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.servers.daemon import Daemon


class Trainer(Daemon):
    """One `python -m trainer` on the CPU.

    Args:
        gateways: HOST:PORT of each.
        token: Its join token; it names the trainer "trainer-1" unless the environment says otherwise.
        folder: For its cache, spool, log and ready file.
        environment: Added to ours.
    """

    def __init__(
        self, gateways: Sequence[str], token: str, folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        settings = {
            "TUNESMITH_GATEWAYS": ",".join(gateways),
            "TUNESMITH_TRAINER_ID": "trainer-1",
            "TUNESMITH_TRAINER_TOKEN": token,
            "TUNESMITH_DEVICE": "cpu",
            "TUNESMITH_DATA": str(folder / "data"),
            "TUNESMITH_METRICS": "127.0.0.1:0",
        }
        super().__init__(folder, ["-m", "trainer"], {**settings, **(environment or {})})
