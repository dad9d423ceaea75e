"""Trainers as last heard. Called by gateway/session at Hello, Heartbeat and the stream's end; by gateway/tunes for the reason why
a tune is still pending.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from store.database import Database
from store.tables import Trainer


@dataclass(frozen=True)
class Hello:
    """What a trainer says of itself."""

    trainer_id: str
    """From its token."""
    boot_id: str
    """Of its process."""
    session_id: str
    """Of its stream."""
    gateway_id: str
    """Where the stream ends."""
    engines: Sequence[str]
    """That it can run."""
    slots: int
    """Tunes at the same time."""
    device_name: str = ""
    """The GPU's name, or "cpu"."""
    device_memory_bytes: int = 0
    """That a tune may use."""
    version: str = ""
    """Of its distribution."""


async def connect(db: Database, hello: Hello) -> Trainer | None:
    """The newest Hello takes the trainer's row. Returns the row as it was while its stream lasted, that is, who is evicted
    (another session of the same boot: it ends; of another boot: DUPLICATE_TRAINER); None where there was none.

    Wakes topic "trainer" with the trainer's id, so that the evicted stream's gateway looks.
    """
    raise NotImplementedError


async def seen(db: Database, trainer_id: str, session_id: str, free_slots: int) -> bool:
    """A beat. False: a newer stream has taken over; this one is to end."""
    raise NotImplementedError


async def current(db: Database, trainer_id: str) -> Trainer | None:
    """The row as it stands."""
    raise NotImplementedError


async def disconnect(db: Database, trainer_id: str, session_id: str) -> None:
    """The stream has ended; nothing where a newer one has taken over. Leases are left as they are."""
    raise NotImplementedError


async def list_connected(db: Database, within_seconds: float = 60.0) -> list[Trainer]:
    """Trainers whose stream lasts and that were heard of so lately."""
    raise NotImplementedError


async def offers_engine(db: Database, engine: str, memory_class: int = 0, within_seconds: float = 60.0) -> bool:
    """Whether a connected trainer can run tunes of the engine and memory class."""
    raise NotImplementedError
