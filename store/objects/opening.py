"""Opens files off the event loop, and leaves none open that nobody waits for any more. Called by the folder of objects
and by gateway/uploads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import IO, Any, TypeVar

File = TypeVar("File", bound=IO[bytes])


async def opened(opening: Coroutine[Any, Any, File], drop: Callable[[File], None] = lambda file: file.close()) -> File:
    """The file that `opening` brings out of a thread. The thread goes on where its awaiter is cancelled: then the file
    is dropped as soon as it is there.
    """
    task = asyncio.ensure_future(opening)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(partial(_drop, drop))
        raise


def _drop(drop: Callable[[File], None], task: asyncio.Task[File]) -> None:
    if not task.cancelled() and task.exception() is None:
        drop(task.result())
