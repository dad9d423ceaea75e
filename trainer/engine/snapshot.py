"""A place to go on from: all that a tune is after one of its steps, as one safetensors file. Called by `tune`.

Everything random is a function of the step (see randomness), and so are the learning rate and the order of the
pictures. So a snapshot needs no generator's state, and a tune that goes on from one is to the bit the one that was
never disturbed.

    lora, optimizer.{name}    the LoRA's numbers and AdamW's, each in one piece; see lora.Adapter
    tunesmith.snapshot        JSON in the metadata: the rest

    loop ── copied to the CPU ──> Keeper ── a thread: write, sync, hash ──> Snapshotted
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer.durable import whole
from trainer.engine.loop import Pace
from trainer.engine.progress import Tally
from trainer.failures import SnapshotRefused

VERSION = 1  # of this layout
KEY = "tunesmith.snapshot"
RATIO = 20  # times that the last upload took pass before the next one: a twentieth of the network at most


@dataclass(frozen=True)
class Snapshot:
    """What a tune is after a step."""

    step: int
    """The step, 1 and up."""
    recipe_sha256: str
    """Of the resolved recipe, as canonical JSON."""
    pace: Pace
    """How its steps are cut into passes: memory may have run out before."""
    tally: Tally
    """What its progress has counted."""
    tensors: Mapping[str, Tensor]
    """On the CPU, and nobody else's."""


def write(path: Path, snapshot: Snapshot) -> tuple[str, int]:
    """Writes the file, whole or not at all. Answers its SHA-256, hexadecimal, and its bytes."""
    rest = {
        "version": VERSION,
        "step": snapshot.step,
        "recipe_sha256": snapshot.recipe_sha256,
        "pace": asdict(snapshot.pace),
        "tally": asdict(snapshot.tally),
    }
    with whole(path) as temporary:
        save_file(dict(snapshot.tensors), temporary, {KEY: json.dumps(rest, sort_keys=True, allow_nan=False)})
        with temporary.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()


def read(path: Path, recipe_sha256: str) -> Snapshot:
    """The snapshot in the file.

    Raises:
        SnapshotRefused: it is damaged, of another version, or another recipe's.
    """
    try:
        with safe_open(path, framework="pt") as file:
            rest = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        if rest["version"] != VERSION:
            raise SnapshotRefused(f"the snapshot is of version {rest['version']}; this trainer reads {VERSION}")
        found = Snapshot(rest["step"], rest["recipe_sha256"], Pace(**rest["pace"]), Tally(**rest["tally"]), tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as exc:
        raise SnapshotRefused(f"the snapshot cannot be read: {type(exc).__name__}: {exc}") from exc
    if found.recipe_sha256 != recipe_sha256:
        raise SnapshotRefused("the snapshot is another recipe's")
    return found


class Keeper:
    """Says when a snapshot is due, and writes it while the training goes on: one at a time."""

    def __init__(
        self,
        folder: Path,
        every: float,
        tell: Callable[[Path, str, int, int], None],
        complain: Callable[[str], None],
        kept: int = 0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """every: seconds; 0: never due. kept: the step that there is a snapshot of already. tell: path, SHA-256, bytes
        and step of each, and complain: why one could not be written, both called in another thread.
        """
        self._folder = folder
        self._every = every
        self._tell = tell
        self._complain = complain
        self._now = now
        self._interval = every
        self._last = now()
        self._kept = kept  # step of the newest; written by keep
        self._outstanding = False  # written by keep and, from the pipe's thread, by uploaded; read by is_due
        self._writing: threading.Thread | None = None

    def is_due(self) -> bool:
        """Whether to take one after this step. Never while the last one waits to be uploaded: so the disk holds one."""
        return self._every > 0 and not self._outstanding and self._now() - self._last >= self._interval

    def uploaded(self, seconds: float) -> None:
        """The last one was dealt with, and that took so long."""
        self._interval = max(self._every, RATIO * seconds)
        self._outstanding = False

    def keep(self, snapshot: Snapshot) -> None:
        """Takes a snapshot, and writes it behind the caller's back; waits while the one before is being written."""
        if snapshot.step <= self._kept:
            return
        self.settle()
        self._last, self._kept, self._outstanding = self._now(), snapshot.step, True
        self._writing = threading.Thread(target=self._write, args=(snapshot,), name="snapshot")
        self._writing.start()

    def settle(self) -> None:
        """Waits until what was taken has been written and told."""
        if self._writing is not None:
            self._writing.join()

    def _write(self, snapshot: Snapshot) -> None:
        path = self._folder / f"snapshot-{snapshot.step}.safetensors"
        try:
            sha256, size = write(path, snapshot)
        except Exception as exc:  # a full disk or too little memory costs the snapshot, not the tune
            self._outstanding = False
            self._complain(f"the snapshot of step {snapshot.step} could not be written: {exc}")
        else:
            self._tell(path, sha256, size, snapshot.step)
