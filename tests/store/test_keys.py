"""Who may come in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, update

from store import errors, keys
from store.database import Database
from store.tables import api_keys, tenants


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

    revoked = [await keys.revoke(database, key.id) for _ in range(2)]

    assert await keys.authenticate(database, secret) is None
    assert [(standing.key.id, was_valid) for standing, was_valid in revoked] == [(key.id, True), (key.id, False)]
    assert revoked[0][0].key.revoked_at == revoked[1][0].key.revoked_at
    with pytest.raises(errors.NotFound, match="there is no key key_none"):
        await keys.revoke(database, "key_none")


async def test_a_key_that_has_leaked_is_revoked_by_itself(database: Database) -> None:
    tenant = await keys.create_tenant(database, "acme")
    key, secret = await keys.create_key(database, tenant.id, "ci")
    _, other = await keys.create_key(database, tenant.id, "other")

    standing, was_valid = await keys.revoke(database, secret)

    assert (standing.key.id, standing.tenant_name, standing.state, was_valid) == (key.id, "acme", "revoked", True)
    assert await keys.authenticate(database, secret) is None
    assert await keys.authenticate(database, other) is not None


@pytest.mark.parametrize("given", ["ts_" + "x" * 43, "Bearer ts_secret", "key_/ts_secret", "tt_secret", "secret"])
async def test_what_may_be_a_secret_is_never_repeated(database: Database, given: str) -> None:
    with pytest.raises(errors.NotFound) as caught:
        await keys.revoke(database, given)

    assert given not in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_keys_are_listed_by_tenant_and_age_with_their_state(database: Database) -> None:
    acme, zebra = [await keys.create_tenant(database, name) for name in ("acme", "zebra")]
    soon = datetime.now(UTC) + timedelta(hours=1)
    await keys.create_key(database, zebra.id, "z")
    for name, expires_at in (("first", None), ("gone", soon), ("ended", soon)):
        key, _ = await keys.create_key(database, acme.id, name, expires_at=expires_at)
    await keys.revoke(database, key.id)
    await database.move_clock(3601)

    listed = [(each.tenant_name, each.key.name, each.state) for each in await keys.list_keys(database)]

    theirs = [("acme", "first", "valid"), ("acme", "gone", "expired"), ("acme", "ended", "revoked")]
    assert listed == [*theirs, ("zebra", "z", "valid")]
    assert [each.key.name for each in await keys.list_keys(database, "acme")] == ["first", "gone", "ended"]


async def test_keys_of_an_unknown_tenant_are_not_none(database: Database) -> None:
    await keys.create_tenant(database, "keyless")

    assert await keys.list_keys(database, "keyless") == []
    with pytest.raises(errors.NotFound, match="there is no tenant 'nobody'"):
        await keys.list_keys(database, "nobody")


@pytest.mark.parametrize("name", ["", " acme", "acme ", "new\ttenant", "a:b", "x" * 129, "\x1b[31mred", "a\u200bb"])
async def test_a_new_tenant_wants_a_name_that_is_like_no_other(database: Database, name: str) -> None:
    with pytest.raises(ValueError, match=r"the tenant's name is .*; 1 to 128 printable characters, but"):
        await keys.find_or_create_tenant(database, name)

    with pytest.raises(ValueError, match="the tenant's name is"):
        await keys.create_tenant(database, name)


async def test_a_tenant_from_before_goes_on_under_its_odd_name(database: Database) -> None:
    tenant = await keys.create_tenant(database, "acme")
    async with database.write() as transaction:
        await transaction.execute(update(tenants).values(name=" a:b"))

    assert (await keys.find_or_create_tenant(database, " a:b")).id == tenant.id


@pytest.mark.parametrize("name", ["\x1b[31mred", " ci", "a\nb", "x" * 129])
async def test_a_keys_name_is_one_that_a_list_can_show(database: Database, name: str) -> None:
    tenant = await keys.create_tenant(database, "acme")

    with pytest.raises(ValueError, match="the key's name is"):
        await keys.create_key(database, tenant.id, name)


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

    ended = [await keys.revoke_trainer_tokens(database, "trainer-1") for _ in range(2)]

    assert [each[:2] for each in ended] == [("trainer-1", 2), ("trainer-1", 0)]
    assert {each[2] for each in ended} == {each.revoked_at for each in await keys.list_trainer_tokens(database)}
    assert [await keys.authenticate_trainer(database, token) for token in tokens] == [None, None]
    with pytest.raises(errors.NotFound, match="there is no token of a trainer 'trainer-2'"):
        await keys.revoke_trainer_tokens(database, "trainer-2")


async def test_a_token_that_has_leaked_is_revoked_by_itself(database: Database) -> None:
    leaked, other = [await keys.create_trainer_token(database, "trainer-1") for _ in range(2)]

    assert (await keys.revoke_trainer_tokens(database, leaked))[:2] == ("trainer-1", 1)

    assert [await keys.authenticate_trainer(database, token) for token in (leaked, other)] == [None, "trainer-1"]
    assert [each.revoked_at is None for each in await keys.list_trainer_tokens(database)] == [False, True]
    with pytest.raises(errors.NotFound, match=r"^there is no such token$"):
        await keys.revoke_trainer_tokens(database, leaked[:-1])


async def test_a_tenants_name_is_its_own(database: Database) -> None:
    tenant = await keys.create_tenant(database, "acme")

    with pytest.raises(errors.NameTaken):
        await keys.create_tenant(database, "acme")
    assert (await keys.find_or_create_tenant(database, "acme")).id == tenant.id
    with pytest.raises(errors.NotFound):
        await keys.create_key(database, "no tenant", "ci")
