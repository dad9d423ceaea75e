"""Serves an ASGI app on a real port, in the test's own event loop. Used where a real connection matters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn


@asynccontextmanager
async def served(app: Any, **given: Any) -> AsyncIterator[tuple[str, int]]:
    """Starts it; gives host and port. More settings of uvicorn may be given, such as TLS files."""
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        lifespan="off",
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=1,
        **given,
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    serving = asyncio.create_task(server.main_loop())
    try:
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield host, port
    finally:
        server.should_exit = True
        await serving
        await server.shutdown()
