"""Who is told: endpoints, their secrets, and mistakes."""

from __future__ import annotations

import base64

import pytest

from store import keys, tunes
from store.errors import NotFound, StateForbids
from store.webhooks import deliveries, endpoints
from store.webhooks.tables import EVENT_TYPES
from tests.store.world import World

URL = "https://receiver.example/hook"


async def secrets_now(world: World, endpoint_id: str) -> list[str]:
    """Those that sign a message which is sent now, the newest first."""
    tune = await world.queued()
    await tunes.cancel(world.database, world.tenant.id, tune.id)
    [due, *_] = await deliveries.claim(world.database, endpoint_id, 1, 60)
    return list(due.secrets)


async def test_endpoint_is_listed_with_its_tenant_and_without_its_secret(world: World) -> None:
    await keys.create_tenant(world.database, "beta")
    second, _ = await endpoints.add(world.database, "beta", URL)
    first, secret = await endpoints.add(world.database, "acme", URL, ["tune.failed", "tune.running"], "pager")

    listed = await endpoints.list_endpoints(world.database)

    assert [(each.endpoint.id, each.tenant_name) for each in listed] == [(first.id, "acme"), (second.id, "beta")]
    assert listed[0].endpoint.event_types == ["tune.running", "tune.failed"]
    assert listed[1].endpoint.event_types == ["tune.succeeded", "tune.failed", "tune.cancelled"]
    assert (listed[0].endpoint.description, listed[0].pending, listed[0].waited) == ("pager", 0, None)
    assert secret not in repr(listed)
    assert [each.tenant_name for each in await endpoints.list_endpoints(world.database, "beta")] == ["beta"]


async def test_secret_is_random_and_as_long_as_the_specification_wants(world: World) -> None:
    made = [(await endpoints.add(world.database, "acme", URL))[1] for _ in range(2)]

    assert len(set(made)) == 2
    for secret in made:
        assert secret.startswith("whsec_")
        assert 24 <= len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) <= 64


async def test_what_waits_is_listed_with_the_age_of_the_oldest(world: World) -> None:
    await endpoints.add(world.database, "acme", URL)
    for _ in range(2):
        await tunes.cancel(world.database, world.tenant.id, (await world.queued()).id)
        await world.database.move_clock(100)

    [standing] = await endpoints.list_endpoints(world.database)

    assert standing.pending == 2
    assert standing.waited is not None
    assert 200 <= standing.waited.total_seconds() < 260


async def test_old_secret_signs_beside_the_new_one_until_its_time_is_over(world: World) -> None:
    endpoint, old = await endpoints.add(world.database, "acme", URL, EVENT_TYPES)

    new = await endpoints.rotate(world.database, endpoint.id, 3600)
    newer = await endpoints.rotate(world.database, endpoint.id, 7200)
    at_once = await secrets_now(world, endpoint.id)
    await world.database.move_clock(3700)
    later = await secrets_now(world, endpoint.id)
    await world.database.move_clock(3700)
    at_last = await secrets_now(world, endpoint.id)

    assert at_once == [newer, new, old]
    assert later == [newer, new], "a second rotation lengthens no secret's time"
    assert at_last == [newer]


async def test_leaked_secret_is_replaced_at_once(world: World) -> None:
    endpoint, _ = await endpoints.add(world.database, "acme", URL, EVENT_TYPES)
    await endpoints.rotate(world.database, endpoint.id, 3600)

    new = await endpoints.rotate(world.database, endpoint.id, 0)

    assert await secrets_now(world, endpoint.id) == [new]


async def test_too_many_rotations_at_once_are_refused(world: World) -> None:
    endpoint, _ = await endpoints.add(world.database, "acme", URL)
    for _ in range(endpoints.MOST_SECRETS - 1):
        await endpoints.rotate(world.database, endpoint.id, 3600)

    with pytest.raises(StateForbids, match="has 4 valid secrets from the last rotations"):
        await endpoints.rotate(world.database, endpoint.id, 3600)

    await endpoints.rotate(world.database, endpoint.id, 0)


async def test_tenant_has_a_bounded_number_of_endpoints(world: World) -> None:
    for _ in range(endpoints.MOST):
        await endpoints.add(world.database, "acme", URL)

    with pytest.raises(StateForbids, match="'acme' has 16 webhook endpoints already"):
        await endpoints.add(world.database, "acme", URL)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "receiver.example/hook",
        "ftp://receiver.example/hook",
        "https://",
        "https:///hook",
        "https://user:password@receiver.example/",
        "https://receiver.example/#part",
        "https://receiver.example/a b",
        "https://receiver.example/a\nb",
        "https://receiver.example:99999/",
        "https://[::1/",
        "https://empfänger.example/",
        "https://receiver.example/" + "a" * 2048,
    ],
)
async def test_what_is_no_address_is_refused(world: World, url: str) -> None:
    with pytest.raises(ValueError, match=r"the URL (is|has) .*wanted"):
        await endpoints.add(world.database, "acme", url)


async def test_mistakes_are_named(world: World) -> None:
    database = world.database

    with pytest.raises(ValueError, match=r"the event type is 'tune.started'; one of tune.running, .* was wanted"):
        await endpoints.add(database, "acme", URL, ["tune.started"])
    with pytest.raises(ValueError, match="no event type is given; one or more of"):
        await endpoints.add(database, "acme", URL, [])
    with pytest.raises(ValueError, match="the description is 'a\\\\nb'; 0 to 200 printable characters were wanted"):
        await endpoints.add(database, "acme", URL, description="a\nb")
    with pytest.raises(NotFound, match="there is no tenant 'nobody'"):
        await endpoints.add(database, "nobody", URL)
    for call in (
        endpoints.remove(database, "hook_1"),
        endpoints.rotate(database, "hook_1", 0),
        endpoints.enable(database, "hook_1"),
        endpoints.disable(database, "hook_1", "why"),
    ):
        with pytest.raises(NotFound, match="there is no webhook endpoint 'hook_1'"):
            await call
