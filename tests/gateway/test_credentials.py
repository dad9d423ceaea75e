from __future__ import annotations

import asyncio

import pytest

from gateway.credentials import Credentials


class FakeKeys:
    """Knows some secrets, and how often it was asked."""

    def __init__(self, **owners: str) -> None:
        self.owners = owners
        self.asked: list[str] = []
        self.now = 0.0

    async def authenticate(self, secret: str) -> str | None:
        self.asked.append(secret)
        await asyncio.sleep(0)
        return self.owners.get(secret)


@pytest.fixture
def keys() -> FakeKeys:
    return FakeKeys(a="alice", b="bob")


@pytest.fixture
def credentials(keys: FakeKeys) -> Credentials[str]:
    return Credentials(keys.authenticate, seconds=5, clock=lambda: keys.now)


async def test_an_owner_is_remembered_until_the_entry_ends(keys: FakeKeys, credentials: Credentials[str]) -> None:
    assert [await credentials.owner("a"), await credentials.owner("a")] == ["alice", "alice"]
    assert keys.asked == ["a"]

    keys.now = 5.0
    assert await credentials.owner("a") == "alice"
    assert keys.asked == ["a", "a"]


async def test_a_revoked_key_is_refused_once_its_entry_ends(keys: FakeKeys, credentials: Credentials[str]) -> None:
    await credentials.owner("a")
    del keys.owners["a"]

    assert await credentials.owner("a") == "alice"
    keys.now = 5.0
    assert await credentials.owner("a") is None
    assert await credentials.owner("a") is None


async def test_an_unknown_secret_is_not_remembered(keys: FakeKeys, credentials: Credentials[str]) -> None:
    assert await credentials.owner("c") is None
    keys.owners["c"] = "carol"

    assert await credentials.owner("c") == "carol"


async def test_one_asks_for_all_when_an_entry_ends(keys: FakeKeys, credentials: Credentials[str]) -> None:
    await credentials.owner("a")
    keys.now = 5.0

    owners = await asyncio.gather(*(credentials.owner("a") for _ in range(100)))

    assert set(owners) == {"alice"}
    assert len(keys.asked) == 2


async def test_the_store_away_is_an_error_and_not_a_refusal(keys: FakeKeys) -> None:
    async def away(secret: str) -> str | None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await Credentials(away, seconds=5).owner("a")


async def test_no_more_is_remembered_than_there_is_room_for(
    keys: FakeKeys, credentials: Credentials[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.credentials.MOST", 1)

    await credentials.owner("a")
    await credentials.owner("b")
    await credentials.owner("a")

    assert keys.asked == ["a", "b", "a"]
