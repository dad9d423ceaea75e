"""Fixtures of the store's tests."""

from __future__ import annotations

import pytest

from store.database import Database
from tests.store.world import World, make_world


@pytest.fixture
async def world(database: Database) -> World:
    """A tenant, a public checkpoint, and a service that has been alive for longer than a lease; on each database."""
    return await make_world(database)
