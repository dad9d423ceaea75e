"""Webhooks on their way: a real receiver, signatures verified by Standard Webhooks' own library, on both databases."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import IPv4Network

import pytest
import structlog
from prometheus_client import CollectorRegistry
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from starlette.responses import Response

from gateway.outbound import Outbound
from gateway.webhooks import delivery as sender
from gateway.webhooks.delivery import LEASE, Webhooks, retry_after
from gateway.webhooks.metrics import WebhookMetrics
from gateway.webhooks.signatures import signed_headers
from store import keys, tunes
from store.database import Database
from store.webhooks import deliveries, endpoints, messages
from store.webhooks.deliveries import DueEndpoint, Fate
from store.webhooks.messages import LogEntry
from tests.servers.receiver import Answers, Received, Receiver, receiving
from tests.store.world import World, make_world

LOOPBACK = (IPv4Network("127.0.0.0/8"),)


@pytest.fixture
async def world(database: Database) -> World:
    return await make_world(database)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as started:
        yield started


class Recorded(WebhookMetrics):
    """Says when a try was recorded: the receiver's answer comes before that."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        super().__init__(self.registry)
        self.tries = asyncio.Semaphore(0)

    def tried(self, fate: Fate, seconds: float) -> None:
        super().tried(fate, seconds)
        self.tries.release()

    async def wait(self, tries: int = 1) -> None:
        """Until so many more are."""
        async with asyncio.timeout(60):
            for _ in range(tries):
                await self.tries.acquire()


@asynccontextmanager
async def gateway(
    world: World, recorded: Recorded | None = None, allow: Sequence[IPv4Network] = LOOPBACK
) -> AsyncIterator[Recorded]:
    """One gateway that delivers; it ends as one that is killed."""
    recorded = recorded or Recorded()
    outbound = Outbound(allow=allow)
    running = asyncio.create_task(Webhooks(world.database, outbound, recorded).run())
    yield recorded
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await outbound.aclose()


async def told(world: World, times: int = 1) -> None:
    """Tunes that end, so that there is something to tell."""
    for _ in range(times):
        await tunes.cancel(world.database, world.tenant.id, (await world.queued()).id)


async def entry_of(world: World) -> LogEntry:
    """The only message in the log."""
    [entry] = await messages.log(world.database)
    return entry


async def states(world: World) -> list[str]:
    """Of all messages in the log."""
    return [entry.delivery.state for entry in await messages.log(world.database)]


async def retry(world: World) -> None:
    """The second try's time has come."""
    await world.database.move_clock(10)
    world.database.wakeups.publish("webhook", "time")


def answering(*statuses: int, headers: dict[str, str] | None = None) -> Answers:
    """One after the other; the last one for ever."""
    left = list(statuses)

    async def answer(_: Received) -> Response:
        return Response(status_code=left.pop(0) if len(left) > 1 else left[0], headers=headers)

    return answer


async def test_webhook_is_delivered_once_and_standard_webhooks_verifies_it(world: World, receiver: Receiver) -> None:
    endpoint, secret = await endpoints.add(world.database, "acme", receiver.url + "/hook?a=b")
    async with gateway(world) as recorded:
        await told(world)
        await recorded.wait()
        entry = await entry_of(world)
        await world.database.move_clock(LEASE + 1)
        await told(world)
        await recorded.wait()
        [first, second] = receiver.received

    assert first.id == entry.delivery.message_id != second.id
    body = Webhook(secret).verify(first.body, first.headers)
    assert body == json.loads(first.body)
    assert body["type"] == "tune.cancelled"
    assert (first.path, first.headers["content-type"]) == ("/hook", "application/json")
    assert [each.status for each in entry.attempts] == [204]
    assert entry.delivery.state == "delivered"
    assert recorded.registry.get_sample_value("tunesmith_webhook_tries_total", {"outcome": "delivered"}) == 2.0
    assert endpoint.id == entry.delivery.endpoint_id


async def test_forged_body_id_and_secret_are_found_out(world: World, receiver: Receiver) -> None:
    _, secret = await endpoints.add(world.database, "acme", receiver.url)
    _, another = await endpoints.add(world.database, "acme", receiver.url + "/another", ["tune.failed"])
    async with gateway(world):
        await told(world)
        [received] = await receiver.have(1)

    forgeries = [
        (secret, received.body + b" ", received.headers),
        (secret, received.body, {**received.headers, "webhook-id": "msg_1"}),
        (another, received.body, received.headers),
    ]

    for with_secret, body, headers in forgeries:
        with pytest.raises(WebhookVerificationError):
            Webhook(with_secret).verify(body, headers)


async def test_during_a_rotation_old_and_new_secret_both_verify(world: World, receiver: Receiver) -> None:
    endpoint, old = await endpoints.add(world.database, "acme", receiver.url)
    new = await endpoints.rotate(world.database, endpoint.id, 3600)

    async with gateway(world):
        await told(world)
        [during] = await receiver.have(1)
        await world.database.move_clock(3601)
        await told(world)
        after = (await receiver.have(2))[1]

    for secret in (old, new):
        Webhook(secret).verify(during.body, during.headers)
    Webhook(new).verify(after.body, after.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(old).verify(after.body, after.headers)


def test_signature_is_the_specifications_example() -> None:
    """The vector that Standard Webhooks' own libraries are tested with."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'

    headers = signed_headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body, [secret])

    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_failed_webhook_is_sent_again_under_its_id_and_signed_anew(world: World, receiver: Receiver) -> None:
    _, secret = await endpoints.add(world.database, "acme", receiver.url)
    receiver.answer = answering(500, 204)
    async with gateway(world) as recorded:
        await told(world)
        await recorded.wait()
        await retry(world)
        await recorded.wait()
    entry = await entry_of(world)

    [first, second] = receiver.received
    assert (first.id, first.body) == (second.id, second.body)
    assert [each.status for each in entry.attempts] == [500, 204]
    assert entry.delivery.state == "delivered"
    for each in (first, second):
        Webhook(secret).verify(each.body, each.headers)


async def test_receiver_that_asks_for_more_time_gets_it(world: World, receiver: Receiver) -> None:
    await endpoints.add(world.database, "acme", receiver.url)
    receiver.answer = answering(429, headers={"Retry-After": "1800"})
    async with gateway(world) as recorded:
        await told(world)
        await recorded.wait()
    entry = await entry_of(world)

    assert entry.delivery.due_at is not None
    waits = (entry.delivery.due_at - entry.attempts[0].ended_at).total_seconds()
    assert 1700 < waits < 1801


async def test_message_of_a_gateway_that_died_before_it_recorded_is_sent_again_by_another_under_its_id(
    world: World, receiver: Receiver
) -> None:
    await endpoints.add(world.database, "acme", receiver.url)
    held = asyncio.Event()

    async def hold(_: Received) -> Response:
        await held.wait()
        return Response(status_code=204)

    receiver.answer = hold
    async with gateway(world):
        await told(world)
        await receiver.have(1)
    # It is gone; what it sent has arrived, and nothing was recorded.
    held.set()
    await world.database.move_clock(LEASE + 1)
    async with gateway(world) as recorded:
        await recorded.wait()
    entry = await entry_of(world)

    [first, second] = receiver.received
    assert (first.id, first.body) == (second.id, second.body)
    assert [each.epoch for each in entry.attempts] == [2]


async def test_two_gateways_send_each_message_once(world: World, receiver: Receiver, database_url: str) -> None:
    await endpoints.add(world.database, "acme", receiver.url)
    other = await world.other_gateway(database_url)
    recorded = Recorded()
    async with gateway(world, recorded), gateway(other, recorded):
        await told(world, 12)
        await recorded.wait(12)

    await other.database.close()
    assert len({each.id for each in receiver.received}) == len(receiver.received) == 12


async def test_slow_receiver_holds_up_no_other_though_its_backlog_came_first(world: World, receiver: Receiver) -> None:
    slow, _ = await endpoints.add(world.database, "acme", receiver.url + "/slow")
    await told(world, 2 * sender.ABREAST + 1)
    await endpoints.disable(world.database, slow.id, "only its backlog")
    await endpoints.add(world.database, "acme", receiver.url + "/quick")
    await told(world, 3)
    await endpoints.enable(world.database, slow.id)
    never = asyncio.Event()

    async def answer(received: Received) -> Response:
        if received.path == "/slow":
            await never.wait()
        return Response(status_code=204)

    receiver.answer = answer
    async with gateway(world):
        await receiver.have(sender.ABREAST, "/slow")
        await receiver.have(3, "/quick")
        await told(world)
        quick = await receiver.have(4, "/quick")
        slow_ones = await receiver.have(sender.ABREAST, "/slow")
        never.set()

    assert len(quick) == 4
    assert len(slow_ones) == sender.ABREAST, "it has no more than its share under way"


@pytest.mark.parametrize("lanes", [4, 5])
async def test_slow_receivers_of_one_tenant_leave_lanes_to_another(
    lanes: int, world: World, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "LANES", lanes)
    beta = World(world.database, await keys.create_tenant(world.database, "beta"), world.checkpoint)
    await endpoints.add(world.database, "beta", receiver.url + "/quick")
    for _ in range(4):
        await endpoints.add(world.database, "acme", receiver.url + "/slow")
    never = asyncio.Event()

    async def answer(received: Received) -> Response:
        if received.path == "/slow":
            await never.wait()
        return Response(status_code=204)

    receiver.answer = answer
    async with gateway(world) as recorded:
        await told(world)
        await receiver.have(2, "/slow")
        for _ in range(2):
            await told(beta)
            await recorded.wait()
        under_way = await receiver.have(2, "/slow")
        never.set()

    assert len(under_way) == 2, "no more than it leaves free"


async def test_receiver_that_is_silent_costs_one_try_and_is_told_as_a_word(
    world: World, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "TIMEOUT", 0.3)
    await endpoints.add(world.database, "acme", receiver.url)
    never = asyncio.Event()

    async def hang(_: Received) -> Response:
        await never.wait()
        return Response(status_code=204)

    receiver.answer = hang
    async with gateway(world) as recorded:
        await told(world)
        await recorded.wait()
        never.set()
    entry = await entry_of(world)

    assert [(each.status, each.error) for each in entry.attempts] == [(None, "TIMED_OUT")]
    assert entry.delivery.state == "pending"


async def test_redirect_is_not_followed(world: World, receiver: Receiver) -> None:
    await endpoints.add(world.database, "acme", receiver.url + "/old")
    receiver.answer = answering(307, headers={"Location": receiver.url + "/new"})
    async with gateway(world) as recorded:
        await told(world)
        await recorded.wait()
    entry = await entry_of(world)

    assert [each.status for each in entry.attempts] == [307]
    assert [each.path for each in receiver.received] == ["/old"]


async def test_gone_disables_the_endpoint_and_enabling_it_sends_what_waits(world: World, receiver: Receiver) -> None:
    endpoint, _ = await endpoints.add(world.database, "acme", receiver.url)
    receiver.answer = answering(410, 204)
    with structlog.testing.capture_logs() as lines:
        async with gateway(world) as recorded:
            await told(world)
            await recorded.wait()
            await told(world)
            [standing] = await endpoints.list_endpoints(world.database)
            await world.database.move_clock(10)
            await endpoints.enable(world.database, endpoint.id)
            await recorded.wait()
    entry = await entry_of(world)

    assert standing.endpoint.disabled_reason == "the receiver answered 410 Gone"
    assert [each.id for each in receiver.received] == [entry.delivery.message_id] * 2
    assert recorded.registry.get_sample_value("tunesmith_webhook_endpoints_disabled_total") == 1.0
    assert "webhook_endpoint_disabled" in [line["action"] for line in lines]


async def test_address_that_is_not_public_is_not_asked_unless_it_is_allowed(world: World, receiver: Receiver) -> None:
    await endpoints.add(world.database, "acme", receiver.url)
    async with gateway(world, allow=()) as recorded:
        await told(world)
        await recorded.wait()
    entry = await entry_of(world)

    assert [(each.status, each.error) for each in entry.attempts] == [(None, "ADDRESS_NOT_PUBLIC")]
    assert receiver.received == []


async def test_gateway_that_ends_waits_for_what_it_is_sending_and_records_it(world: World, receiver: Receiver) -> None:
    await endpoints.add(world.database, "acme", receiver.url)
    held = asyncio.Event()

    async def hold(_: Received) -> Response:
        await held.wait()
        return Response(status_code=204)

    receiver.answer = hold
    outbound = Outbound(allow=LOOPBACK)
    ending = Webhooks(world.database, outbound, Recorded())
    running = asyncio.create_task(ending.run())
    await told(world)
    await receiver.have(1)

    closing = asyncio.create_task(ending.close(60))
    held.set()
    await closing
    entry = await entry_of(world)
    await running

    assert entry.delivery.state == "delivered"
    await outbound.aclose()


async def test_gateway_that_ends_amid_a_look_sends_nothing_of_what_it_finds(
    world: World, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await endpoints.add(world.database, "acme", receiver.url)
    await told(world)
    looking, go_on = asyncio.Event(), asyncio.Event()
    look = deliveries.due_endpoints

    async def slowly(database: Database) -> list[DueEndpoint]:
        looking.set()
        await go_on.wait()
        return await look(database)

    monkeypatch.setattr(deliveries, "due_endpoints", slowly)
    outbound = Outbound(allow=LOOPBACK)
    ending = Webhooks(world.database, outbound, Recorded())
    running = asyncio.create_task(ending.run())
    await looking.wait()

    await ending.close(60)
    go_on.set()
    await running

    assert receiver.received == []
    await outbound.aclose()


async def test_message_that_breaks_does_not_let_the_gateway_end_before_its_neighbours(
    world: World, receiver: Receiver
) -> None:
    await endpoints.add(world.database, "acme", receiver.url)
    await told(world, 2)
    held, broken = asyncio.Event(), asyncio.Event()

    async def answer(received: Received) -> Response:
        if received is not receiver.received[0]:
            await held.wait()
        return Response(status_code=204)

    class Breaks(Recorded):
        def tried(self, fate: Fate, seconds: float) -> None:
            if not broken.is_set():
                broken.set()
                raise LookupError("a mistake of ours")
            super().tried(fate, seconds)

    receiver.answer = answer
    outbound = Outbound(allow=LOOPBACK)
    ending = Webhooks(world.database, outbound, Breaks())
    with structlog.testing.capture_logs() as lines:
        running = asyncio.create_task(ending.run())
        await receiver.have(2)
        await broken.wait()
        waiting = await states(world)
        await ending.close(0)
        held.set()
        await running

    assert sorted(waiting) == ["delivered", "pending"]
    assert await states(world) == ["delivered"] * 2
    assert [line["action"] for line in lines if line["log_level"] != "debug"] == ["webhooks_left", "webhook_broke"]
    await outbound.aclose()


async def test_log_lines_tell_neither_url_nor_secret(world: World, receiver: Receiver) -> None:
    _, secret = await endpoints.add(world.database, "acme", receiver.url + "/hidden-path?token=hidden")
    receiver.answer = answering(500, 410)
    with structlog.testing.capture_logs() as lines:
        async with gateway(world) as recorded:
            await told(world)
            await recorded.wait()
            await retry(world)
            await recorded.wait()

    assert {"webhook_retried", "webhook_endpoint_disabled"} <= {line["action"] for line in lines}
    assert "hidden" not in repr(lines)
    assert secret not in repr(lines)


async def test_fault_of_ours_counts_as_a_try(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await endpoints.add(world.database, "acme", "http://127.0.0.1/")

    async def broken(*_: object, **__: object) -> None:
        raise LookupError("a mistake of ours")

    monkeypatch.setattr(Outbound, "post", broken)
    async with gateway(world) as recorded:
        await told(world)
        await recorded.wait()
    entry = await entry_of(world)

    assert [each.error for each in entry.attempts] == ["LookupError"]


@pytest.mark.parametrize("ours", ["signed_headers", "retry_after"])
async def test_fault_before_and_after_the_request_counts_as_a_try_too(
    ours: str, world: World, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await endpoints.add(world.database, "acme", receiver.url)

    def broken(*_: object) -> None:
        raise LookupError("a mistake of ours")

    monkeypatch.setattr(sender, ours, broken)
    async with gateway(world) as recorded:
        await told(world)
        await recorded.wait()
    entry = await entry_of(world)

    assert [each.error for each in entry.attempts] == ["LookupError"]


def test_retry_after_is_read_as_seconds_and_as_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=100), usegmt=True)

    assert retry_after({"retry-after": "120"}) == 120.0
    assert retry_after({"retry-after": past}) == 0.0
    assert 90 < (retry_after({"retry-after": soon}) or 0) <= 100
    endless = f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT"
    for nonsense in ("", "soon", "-1", "1.5", "9" * 400, "٣", endless):
        assert retry_after({"retry-after": nonsense}) is None
    assert retry_after({}) is None
