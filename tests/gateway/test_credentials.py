from __future__ import annotations

import asyncio

import pytest

from gateway.credentials import EARLY, STRANGERS, Credentials, TooManyWrong


class FakeKeys:
    """Knows some secrets, and how often it was asked."""

    def __init__(self, **owners: str) -> None:
        self.owners = owners
        self.asked: list[str] = []
        self.now = 0.0
        self.held: asyncio.Event | None = None
        self.away = False
        self._arrived = asyncio.Condition()

    async def authenticate(self, secret: str) -> str | None:
        async with self._arrived:
            self.asked.append(secret)
            self._arrived.notify_all()
        if self.held is not None:
            await self.held.wait()
        if self.away:
            raise ConnectionError
        return self.owners.get(secret)

    async def was_asked(self, times: int = 1) -> None:
        """Waits until it was."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.asked) >= times)


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


async def test_an_entry_long_past_its_end_serves_nobody_while_it_is_looked_up(
    keys: FakeKeys, credentials: Credentials[str]
) -> None:
    await credentials.owner("a")
    del keys.owners["a"]
    keys.now = 3600.0

    owners = await asyncio.gather(*(credentials.owner("a") for _ in range(100)))

    assert set(owners) == {None}
    assert keys.asked == ["a", "a"]


async def test_an_entry_near_its_end_serves_while_one_asks_for_all(
    keys: FakeKeys, credentials: Credentials[str]
) -> None:
    await credentials.owner("a")
    keys.held = asyncio.Event()
    keys.now = 5.0 - EARLY

    owners = [await credentials.owner("a") for _ in range(100)]
    keys.held.set()
    keys.now = 5.0
    owners.append(await credentials.owner("a"))  # joins the look-up that is under way

    assert set(owners) == {"alice"}
    assert keys.asked == ["a", "a"]


async def test_an_answer_is_remembered_from_when_it_was_asked_for(
    keys: FakeKeys, credentials: Credentials[str]
) -> None:
    keys.held = asyncio.Event()
    asking = asyncio.create_task(credentials.owner("a"))
    await keys.was_asked()
    keys.now = 4.0
    keys.held.set()
    await asking
    del keys.owners["a"]

    keys.now = 5.0
    assert await credentials.owner("a") is None


async def test_who_leaves_takes_the_answer_from_nobody(keys: FakeKeys, credentials: Credentials[str]) -> None:
    await credentials.owner("a")
    keys.held = asyncio.Event()
    keys.now = 5.0
    leaves, waits = (asyncio.create_task(credentials.owner("a")) for _ in range(2))
    await keys.was_asked(2)

    leaves.cancel()
    await asyncio.wait([leaves])
    keys.held.set()

    assert await waits == "alice"
    assert keys.asked == ["a", "a"]


async def test_a_store_that_is_away_is_not_outlived_by_what_is_remembered(
    keys: FakeKeys, credentials: Credentials[str]
) -> None:
    await credentials.owner("a")
    keys.away = True

    keys.now = 4.5
    assert await credentials.owner("a") == "alice"
    keys.now = 5.0
    for _ in range(3):
        with pytest.raises(ConnectionError):
            await credentials.owner("a")
    keys.away = False
    assert await credentials.owner("a") == "alice"


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


async def test_wrong_secrets_from_one_place_cost_the_store_so_many_questions_and_no_more(
    keys: FakeKeys, credentials: Credentials[str]
) -> None:
    for number in range(100):
        assert await credentials.owner(f"wrong-{number}", "10.0.0.1") is None
    for number in range(100, 1000):
        with pytest.raises(TooManyWrong) as refused:
            await credentials.owner(f"wrong-{number}", "10.0.0.1")
        assert refused.value.seconds == pytest.approx(0.1)

    assert len(keys.asked) == 100
    keys.now = 1.0
    for number in range(10):
        assert await credentials.owner(f"later-{number}", "10.0.0.1") is None
    with pytest.raises(TooManyWrong):
        await credentials.owner("later", "10.0.0.1")


async def test_who_tries_keys_shuts_out_nobody_who_is_known_or_comes_from_elsewhere(
    keys: FakeKeys, credentials: Credentials[str]
) -> None:
    await credentials.owner("a", "10.0.0.1")
    for number in range(100):
        await credentials.owner(f"wrong-{number}", "10.0.0.1")
    keys.now = 5.0  # what is remembered of "a" has ended: it is asked for again
    for number in range(50):
        await credentials.owner(f"again-{number}", "10.0.0.1")

    assert await credentials.owner("a", "10.0.0.1") == "alice"
    assert await credentials.owner("b", "10.0.0.2") == "bob"
    with pytest.raises(TooManyWrong):
        await credentials.owner("b2", "10.0.0.1")


async def test_right_secrets_are_not_counted(keys: FakeKeys, credentials: Credentials[str]) -> None:
    keys.owners |= {f"right-{number}": "acme" for number in range(500)}

    owners = [await credentials.owner(f"right-{number}", "10.0.0.1") for number in range(500)]

    assert set(owners) == {"acme"}


async def test_unknown_secrets_are_looked_up_a_few_at_a_time(keys: FakeKeys) -> None:
    asked, most, full, go_on = 0, 0, asyncio.Event(), asyncio.Event()

    async def slow(secret: str) -> None:
        nonlocal asked, most
        asked += 1
        most = max(most, asked)
        if asked == STRANGERS:
            full.set()
        await go_on.wait()
        asked -= 1

    credentials: Credentials[None] = Credentials(slow, seconds=5)
    waiting = [asyncio.create_task(credentials.owner(str(number), str(number))) for number in range(50)]
    await full.wait()
    for _ in range(10):  # turns of the loop, in which a fifth would be asked for
        await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(*waiting)

    assert most == STRANGERS


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
