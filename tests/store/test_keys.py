"""Who may come in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from store import errors, keys
from store.database import Database
from store.tables import api_keys


async def test_a_key_opens_its_tenant(database: Database) -> None:
    tenant = await keys.create_tenant(database, "acme", is_operator=True)
    key, secret = await keys.create_key(database, tenant.id, "ci", ["tunes:read"])

    caller = await keys.authenticate(database, secret)

    assert caller == keys.Caller(tenant.id, "acme", key.id, frozenset({"tunes:read"}), True)
    assert secret.startswith("ts_")
    assert await keys.authenticate(database, secret[:-1]) is None
    assert await keys.authenticate(database, "") is None


async def test_only_the_hash_of_a_secret_is_kept(database: Database) -> None:
    tenant = await keys.create_tenant(database, "acme")
    _, secret = await keys.create_key(database, tenant.id, "ci")

    async with database.read() as connection:
        row = (await connection.execute(select(api_keys))).one()

    assert not any(secret in str(value) or secret[3:] in str(value) for value in row)


async def test_a_revoked_key_opens_nothing(database: Database) -> None:
    tenant = await keys.create_tenant(database, "acme")
    key, secret = await keys.create_key(database, tenant.id, "ci")

    await keys.revoke(database, key.id)
    await keys.revoke(database, key.id)

    assert await keys.authenticate(database, secret) is None
    assert [each.id for each in await keys.list_keys(database, tenant.id)] == [key.id]
    with pytest.raises(errors.NotFound):
        await keys.revoke(database, "key_none")


async def test_a_key_expires_by_the_databases_clock(database: Database) -> None:
    tenant = await keys.create_tenant(database, "acme")
    soon = datetime.now(UTC) + timedelta(hours=1)
    _, secret = await keys.create_key(database, tenant.id, "ci", expires_at=soon)
    assert await keys.authenticate(database, secret) is not None

    await database.move_clock(3601)

    assert await keys.authenticate(database, secret) is None


async def test_a_trainers_token_opens_no_callers_door_and_the_other_way_round(database: Database) -> None:
    tenant = await keys.create_tenant(database, "acme")
    _, secret = await keys.create_key(database, tenant.id, "ci")
    token = await keys.create_trainer_token(database, "trainer-1")

    assert await keys.authenticate_trainer(database, token) == "trainer-1"
    assert await keys.authenticate(database, token) is None
    assert await keys.authenticate_trainer(database, secret) is None


async def test_a_trainers_tokens_are_revoked_together(database: Database) -> None:
    tokens = [await keys.create_trainer_token(database, "trainer-1") for _ in range(2)]

    assert await keys.revoke_trainer_tokens(database, "trainer-1") == 2

    assert [await keys.authenticate_trainer(database, token) for token in tokens] == [None, None]


async def test_a_tenants_name_is_its_own(database: Database) -> None:
    tenant = await keys.create_tenant(database, "acme")

    with pytest.raises(errors.NameTaken):
        await keys.create_tenant(database, "acme")
    assert (await keys.find_or_create_tenant(database, "acme")).id == tenant.id
    with pytest.raises(errors.NotFound):
        await keys.create_key(database, "no tenant", "ci")
