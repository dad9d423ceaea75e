"""The child's life: Ready, then tune after tune as the supervisor says. Called by `__main__`; knows the pipe, and
leaves what a tune does to `tune`.

Two threads. The reader takes messages off the pipe and ends the process when the pipe closes, whatever the other is
at. The main one makes tunes. Between them: a queue of Starts, and the orders that came for each. (A third writes a
snapshot now and then.)
"""

from __future__ import annotations

import logging
import os
import threading
from queue import Queue
from typing import BinaryIO

from trainer import pipe
from trainer.engine import hardware
from trainer.engine.families import FAMILIES
from trainer.engine.orders import Orders
from trainer.engine.tune import Tune, Workshop
from trainer.failures import Failure, failure_of
from trainer.pipe import (
    Broke,
    Memory,
    Ready,
    Resident,
    Saved,
    SnapshotUploaded,
    Start,
    Stepped,
    Stop,
    Stopped,
    ToSupervisor,
)

#: After these the process may take more memory than before, or less.
TAKES = (Ready, Resident, Stepped, Saved, Broke, Stopped)

log = logging.getLogger(__name__)


class Child:
    """One process's worth of tuning."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO, shop: Workshop) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._telling = threading.Lock()  # a snapshot is told by the thread that has written it
        self._shop = shop
        self._starts: Queue[Start] = Queue()  # the reader puts, the main thread takes
        self._orders: dict[tuple[str, int], Orders] = {}  # the reader adds and fills; the main thread reads and removes

    def serve(self) -> None:
        """Until the pipe closes, which ends the process."""
        threading.Thread(target=self._read, name="pipe", daemon=True).start()
        name, memory = hardware.describe(self._shop.device)
        self._tell(Ready(list(FAMILIES), name, memory, slots=1, threads=self._shop.threads))
        while True:
            self._tell_end(self._starts.get())

    def _tell_end(self, start: Start) -> None:
        attempt = start.tune_id, start.epoch
        ended, failure = self._tuned(start, self._orders[attempt])
        del self._orders[attempt]
        self._tell(ended)
        if failure and failure.fatal:
            raise SystemExit(f"ends, for its device faulted: {failure.details}")

    def _tuned(self, start: Start, orders: Orders) -> tuple[ToSupervisor, Failure | None]:
        try:
            return Tune(start, self._shop, self._tell, orders).run(), None
        except Exception as fault:
            failure = failure_of(fault)
            log.exception("The tune broke. action=broke tune=%s epoch=%d", start.tune_id, start.epoch)
        # The base was whole when the tune began, and a fault may have left it otherwise. A caller's mistake cannot.
        if failure.reason in ("INTERNAL", "OUT_OF_MEMORY"):
            self._shop.residence.leave()
            self._tell(Resident([], 0))
        return Broke(start.tune_id, start.epoch, failure.reason, failure.details, failure.retryable), failure

    def _read(self) -> None:
        try:
            for line in self._incoming:
                self._note(pipe.decode(line))
        except ValueError:
            log.exception("What came through the pipe is no message. action=end")
            os._exit(1)
        # At once, and past every cleanup: the other thread may be deep in a kernel, and nobody waits for it any more.
        os._exit(0)

    def _note(self, message: pipe.Message) -> None:
        match message:
            case Start():
                self._orders[message.tune_id, message.epoch] = Orders()
                self._starts.put(message)
            case Stop() | SnapshotUploaded():
                if (orders := self._orders.get((message.tune_id, message.epoch))) is not None:
                    orders.note(message)
            case _:
                log.warning("A message that is not for the engine was ignored. action=ignored message=%s", message)

    def _tell(self, message: ToSupervisor) -> None:
        with self._telling:
            self._outgoing.write(pipe.encode(message))
            if isinstance(message, TAKES):
                self._outgoing.write(pipe.encode(Memory(*hardware.memory_taken(self._shop.device))))
            self._outgoing.flush()
