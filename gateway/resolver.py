"""Looks names up, in threads of its own. Called by outbound; knows no URL.

A name server that keeps silent holds a thread for as long as the system's resolver likes, and callers choose the names.
So these are not the threads that read and write files for everybody: where all are held, only names wait.
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

THREADS = 16  # names looked up at a time; the rest wait for their turn, as long as their asker does


class Resolver:
    """The system's resolver."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="resolver")

    async def resolve(self, host: str, port: int) -> list[str]:
        """A host's addresses, best first. Raises OSError where it has none."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, _found, host, port)
        return [str(address[4][0]) for address in found]

    def close(self) -> None:
        """Waits for nothing: what is still looked up is of no use any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _found(host: str, port: int) -> list[tuple[object, object, object, object, tuple[object, ...]]]:
    return [*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
