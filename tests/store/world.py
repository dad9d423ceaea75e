"""What store tests begin with: a tenant, a checkpoint, files; and time that passes with the service alive."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import update

from store import assets, keys, leases, tunes
from store.database import Database
from store.dialect import now
from store.tables import Asset, Tenant, Tune, liveness

ENGINE = "image/stable-diffusion-v1-5"
LEASE = 45.0  # seconds
PLENTY = 2**36  # bytes of device memory


class World:
    """One tenant with what it needs to ask for tunes."""

    def __init__(self, database: Database, tenant: Tenant, checkpoint: Asset) -> None:
        self.database = database
        self.tenant = tenant
        self.checkpoint = checkpoint
        self._numbers = itertools.count(1)

    async def file(self, *, ready: bool = True, tenant: Tenant | None = None) -> Asset:
        """A file asset, uploaded unless told otherwise."""
        owner = (tenant or self.tenant).id
        made = await assets.create(self.database, assets.NewAsset(owner, "file", f"picture-{next(self._numbers)}.png"))
        if not ready:
            return made
        key = f"assets/{made.id}/{'a' * 64}"
        return await assets.complete(
            self.database, owner, made.id, size_bytes=10, sha256="a" * 64, object_key=key, data={"file_format": "png"}
        )

    def new_tune(self, pictures: Sequence[Asset], **changes: Any) -> tunes.NewTune:
        """What a caller asks for, with a name and a body of its own unless told otherwise."""
        number = next(self._numbers)
        asked: dict[str, Any] = {
            "tenant_id": self.tenant.id,
            "name": f"tune-{number}",
            "checkpoint_ref": "tunesmith:tiny-shapes",
            "details": {"steps": 10, "trigger_words": ["sks"]},
            "files": [(file.id, None) for file in pictures],
            "steps": 10,
            "trigger_words": ["sks"],
            "request_hash": f"hash-{number}",
        }
        return tunes.NewTune(**{**asked, **changes})

    async def queued(self, **changes: Any) -> Tune:
        """A tune in the queue, with one good file."""
        return (await tunes.submit(self.database, self.new_tune([await self.file()], **changes))).tune

    async def claimed(self, trainer_id: str = "trainer-1", **changes: Any) -> leases.Claim:
        """A tune that was just claimed."""
        tune = await self.queued(**changes)
        claim = await self.claim(trainer_id)
        assert claim is not None
        assert claim.tune.id == tune.id
        return claim

    async def running(self, trainer_id: str = "trainer-1", **changes: Any) -> leases.Claim:
        """A tune that a trainer has accepted."""
        claim = await self.claimed(trainer_id, **changes)
        assert await leases.accept(self.database, claim.lease)
        return claim

    async def claim(
        self, trainer_id: str = "trainer-1", *, memory_bytes: int = PLENTY, warm: Sequence[str] = ()
    ) -> leases.Claim | None:
        """What a trainer gets."""
        return await leases.claim(self.database, leases.Offer(trainer_id, [ENGINE], memory_bytes, warm), LEASE)

    async def tune(self, tune_id: str) -> Tune:
        """As it stands."""
        return await tunes.find(self.database, self.tenant.id, tune_id)

    async def other_gateway(self, url: str) -> World:
        """The same through another gateway's connections, which are the caller's to close."""
        second = await Database.open(url)
        second._moved = self.database._moved  # SQLite's clock is each process's own; PostgreSQL's is the server's
        return World(second, self.tenant, self.checkpoint)

    async def pass_time(self, seconds: float) -> None:
        """Moves the clock, with the service alive all the while."""
        beat = LEASE / 9
        while seconds > 0:
            await self.database.move_clock(min(beat, seconds))
            await leases.reap(self.database, LEASE)
            seconds -= beat


async def make_world(database: Database) -> World:
    """A tenant, a public checkpoint, and a service that has been alive for longer than a lease."""
    tenant = await keys.create_tenant(database, "acme")
    checkpoint = await assets.publish(database, "tunesmith", "tiny-shapes", ENGINE, {"builtin": "tiny-shapes"})
    world = World(database, tenant, checkpoint)
    async with database.write() as transaction:  # as after a lease's time of reaping
        long_ago = datetime(2000, 1, 1, tzinfo=UTC)
        await transaction.execute(update(liveness).values(seen_at=now(), grace_until=long_ago))
    return world
