"""What the supervisor says of an attempt that is under way. Filled by `child`, whose pipe it comes through; heeded by
`tune` and `training` between two pictures and two steps."""

from __future__ import annotations

from collections.abc import Callable

from trainer.pipe import SnapshotUploaded, Stop


class Interrupted(Exception):
    """The tune was told to stop."""


class Orders:
    """Of one attempt. Written by the pipe's thread, read by the one that trains."""

    def __init__(self) -> None:
        self._stop: Stop | None = None
        self._on_upload: Callable[[float], None] = _unheard

    @property
    def wants_snapshot(self) -> bool:
        """Whether it is to stop so that another trainer can go on."""
        return self._stop is not None and self._stop.snapshot

    def note(self, message: Stop | SnapshotUploaded) -> None:
        """Takes one."""
        if isinstance(message, Stop):
            self._stop = message
        else:
            self._on_upload(message.seconds)

    def on_upload(self, act: Callable[[float], None]) -> None:
        """From now on `act` is called, in the pipe's thread, with the seconds that each snapshot's upload took."""
        self._on_upload = act

    def off_upload(self) -> None:
        """From now on nobody is told. What was told before would else keep alive whom it told, and he keeps us: a whole
        LoRA on the GPU, until the collector of cycles comes round, which no want of GPU memory calls.
        """
        self._on_upload = _unheard

    def heed(self) -> None:
        """Raises Interrupted if the tune was told to stop."""
        if self._stop is not None:
            raise Interrupted


def _unheard(seconds: float) -> None:
    pass
