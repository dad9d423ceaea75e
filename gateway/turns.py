"""Turns at work that takes memory and disks: so many at a time, and so many of them of one tenant. Taken by uploads;
knows none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary


class Turns:
    """Those of one kind of work.

    Args:
        at_once: For all tenants together.
        a_tenant: Of these.
    """

    def __init__(self, at_once: int, a_tenant: int) -> None:
        self._all = asyncio.Semaphore(at_once)
        self._a_tenant = a_tenant
        #: Tenant -> its own; there for as long as somebody holds it or waits for it.
        self._own: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def taken(self, tenant_id: str) -> AsyncIterator[None]:
        """Waits for a turn. First for one of the tenant's own: who waits for that holds none of everybody's."""
        own = self._own.setdefault(tenant_id, asyncio.Semaphore(self._a_tenant))
        async with own, self._all:
            yield
