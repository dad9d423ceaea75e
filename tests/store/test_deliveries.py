"""How the outbox is delivered: claimed by one gateway at a time, tried again, given up, told to the operator."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Delete, Select, text
from sqlalchemy.exc import DBAPIError

from store import retention, tunes
from store.database import Transaction
from store.errors import NotFound
from store.tables import record
from store.webhooks import deliveries, endpoints, messages
from store.webhooks.deliveries import FAILING, LONGEST_PAUSE, SCHEDULE, Answer, Due, Fate, pause_after
from store.webhooks.tables import WebhookAttempt
from tests.store.world import World

DAY = 86400.0
LEASE = 30.0  # seconds
GOOD = Answer(0.1, status=204)
BAD = Answer(0.2, status=500)
DEAD = Answer(15.0, error="TIMEOUT")
WELL_PAST = 1.3  # times a pause: its jitter is over then


async def add(world: World) -> str:
    endpoint, _ = await endpoints.add(world.database, "acme", "https://receiver.example/hook")
    return endpoint.id


async def told(world: World, times: int = 1) -> None:
    """Tunes that end, so that there is something to tell."""
    for _ in range(times):
        await tunes.cancel(world.database, world.tenant.id, (await world.queued()).id)


async def claim(world: World, endpoint: str, limit: int = 8) -> list[Due]:
    return await deliveries.claim(world.database, endpoint, limit, LEASE)


async def disabled_reason(world: World) -> str | None:
    [standing] = await endpoints.list_endpoints(world.database)
    return standing.endpoint.disabled_reason


async def test_delivered_message_is_due_no_more_and_stands_in_the_log(world: World) -> None:
    endpoint = await add(world)
    await told(world)

    [due] = await claim(world, endpoint)
    verdict = await deliveries.conclude(world.database, due, GOOD)
    await world.database.move_clock(30 * DAY)

    assert verdict.fate is Fate.DELIVERED
    assert await deliveries.due_endpoints(world.database) == []
    assert await claim(world, endpoint) == []
    [entry] = await messages.log(world.database)
    assert (entry.delivery.state, entry.delivery.due_at) == ("delivered", None)
    assert [(each.status, each.error, each.seconds) for each in entry.attempts] == [(204, None, 0.1)]


async def test_each_message_is_claimed_by_one_gateway(world: World, database_url: str) -> None:
    endpoint = await add(world)
    await told(world, 10)
    other = await world.other_gateway(database_url)

    claimed = await asyncio.gather(*(claim(each, endpoint, 3) for each in (world, other) * 3))

    await other.database.close()
    ids = [due.message_id for some in claimed for due in some]
    assert len(ids) == len(set(ids))
    assert len(ids) + len(await claim(world, endpoint, 10)) == 10


async def test_message_of_a_gateway_that_died_over_it_comes_again_under_its_id(world: World) -> None:
    endpoint = await add(world)
    await told(world)
    [first] = await claim(world, endpoint)

    before = await claim(world, endpoint)
    await world.database.move_clock(LEASE + 1)
    [second] = await claim(world, endpoint)

    assert before == []
    assert (second.message_id, second.body) == (first.message_id, first.body)
    assert second.epoch == first.epoch + 1


async def test_try_that_ends_after_its_lease_is_not_recorded_once_another_has_begun(world: World) -> None:
    endpoint = await add(world)
    await told(world)
    [late] = await claim(world, endpoint)
    await world.database.move_clock(LEASE + 1)
    [newer] = await claim(world, endpoint)

    stale = await deliveries.conclude(world.database, late, DEAD)
    recorded = await deliveries.conclude(world.database, newer, GOOD)
    again = await deliveries.conclude(world.database, newer, GOOD)

    assert (stale.fate, recorded.fate, again.fate) == (Fate.STALE, Fate.DELIVERED, Fate.STALE)
    [entry] = await messages.log(world.database)
    assert [each.status for each in entry.attempts] == [204]


async def test_failed_message_is_tried_as_the_schedule_says_and_then_given_up(world: World) -> None:
    endpoint = await add(world)
    await told(world)
    fates = []

    for pause in (*SCHEDULE, None):
        [due] = await claim(world, endpoint)
        fates.append((await deliveries.conclude(world.database, due, BAD)).fate)
        if pause is not None:
            await world.database.move_clock(pause - 1)
            assert await claim(world, endpoint) == [], f"not before {pause} s are over"
            await world.database.move_clock(pause * (WELL_PAST - 1) + 2)

    assert fates == [Fate.RETRIED] * len(SCHEDULE) + [Fate.GIVEN_UP]
    assert 1.5 * DAY <= sum(SCHEDULE) <= 1.7 * DAY
    await world.database.move_clock(30 * DAY)
    assert await claim(world, endpoint) == []
    [entry] = await messages.log(world.database)
    assert (entry.delivery.state, len(entry.attempts)) == ("given_up", len(SCHEDULE) + 1)


def test_pauses_have_jitter_and_a_receiver_can_ask_for_more_time_within_bounds() -> None:
    first, second = SCHEDULE[:2]

    drawn = {pause_after(1) for _ in range(20)}
    asked = pause_after(1, 3600.0)
    asked_less = pause_after(2, 1.0)
    asked_too_much = pause_after(1, 10 * LONGEST_PAUSE)

    assert len(drawn) > 1
    assert all(pause is not None and first <= pause <= first * 1.2 for pause in drawn)
    assert asked == 3600.0
    assert asked_less is not None
    assert second <= asked_less <= second * 1.2
    assert asked_too_much == LONGEST_PAUSE
    assert pause_after(len(SCHEDULE) + 1, 60.0) is None


async def test_receiver_that_is_gone_is_told_nothing_more_until_it_is_enabled(world: World) -> None:
    endpoint = await add(world)
    await told(world, 2)
    due, other = await claim(world, endpoint)

    verdict = await deliveries.conclude(world.database, due, Answer(0.1, status=410))
    await deliveries.conclude(world.database, other, BAD)
    await world.database.move_clock(DAY)
    while_disabled = (await deliveries.due_endpoints(world.database), await claim(world, endpoint))
    reason = await disabled_reason(world)
    await endpoints.enable(world.database, endpoint)

    assert (verdict.fate, verdict.disabled) == (Fate.RETRIED, "the receiver answered 410 Gone")
    assert while_disabled == ([], [])
    assert reason == "the receiver answered 410 Gone"
    assert {each.message_id for each in await claim(world, endpoint)} == {due.message_id, other.message_id}


async def test_endpoint_is_disabled_once_by_the_first_of_several_that_answer_gone(world: World) -> None:
    endpoint = await add(world)
    await told(world, 3)
    gone = Answer(0.1, status=410)

    verdicts = await asyncio.gather(
        *(deliveries.conclude(world.database, due, gone) for due in await claim(world, endpoint))
    )

    assert [each.fate for each in verdicts] == [Fate.RETRIED] * 3
    assert sorted(each.disabled or "" for each in verdicts) == ["", "", "the receiver answered 410 Gone"]


async def fail_for_good(world: World, endpoint: str, answer: Answer) -> deliveries.Verdict:
    """Of one message, all tries."""
    await told(world)
    for pause in (*SCHEDULE, 0.0):
        [due] = await claim(world, endpoint)
        verdict = await deliveries.conclude(world.database, due, answer)
        await world.database.move_clock(pause * WELL_PAST)
    return verdict


async def test_endpoint_that_fails_for_days_is_disabled_and_says_why(world: World) -> None:
    endpoint = await add(world)

    first = await fail_for_good(world, endpoint, DEAD)
    after_first = await disabled_reason(world)
    second = await fail_for_good(world, endpoint, DEAD)

    assert (first.fate, first.disabled, after_first) == (Fate.GIVEN_UP, None, None)
    assert sum(SCHEDULE) < FAILING < 2 * sum(SCHEDULE)
    assert second.disabled == "no try went well for 3 days; the last one ended with TIMEOUT"
    assert await disabled_reason(world) == second.disabled


async def test_endpoint_is_not_disabled_by_its_first_failure_after_a_quiet_month(world: World) -> None:
    endpoint = await add(world)
    await fail_for_good(world, endpoint, DEAD)
    await world.database.move_clock(30 * DAY)
    await told(world)

    [due] = await claim(world, endpoint)
    await deliveries.conclude(world.database, due, DEAD)

    assert await disabled_reason(world) is None


async def test_one_good_answer_forgives_all_failures_before_it(world: World) -> None:
    endpoint = await add(world)
    await fail_for_good(world, endpoint, DEAD)
    await told(world)
    [due] = await claim(world, endpoint)
    await deliveries.conclude(world.database, due, GOOD)

    verdict = await fail_for_good(world, endpoint, DEAD)

    assert (verdict.fate, verdict.disabled) == (Fate.GIVEN_UP, None)


async def test_message_is_sent_again_by_hand_under_its_id_with_all_its_tries(world: World) -> None:
    endpoint = await add(world)
    await told(world)
    [due] = await claim(world, endpoint)
    await deliveries.conclude(world.database, due, GOOD)

    async with world.database.wakeups.subscribe("webhook") as woken:
        resent = await messages.resend(world.database, due.message_id)
        heard = await woken.wait(10.0)
    [again] = await claim(world, endpoint)
    verdict = await deliveries.conclude(world.database, again, BAD)

    assert (resent, heard) == (messages.Resent([endpoint], []), [due.message_id])
    assert (again.message_id, again.body, again.epoch) == (due.message_id, due.body, 3)
    assert verdict.fate is Fate.RETRIED
    [entry] = await messages.log(world.database, endpoint_id=endpoint)
    assert [each.status for each in entry.attempts] == [204, 500]


async def test_a_try_under_way_does_not_put_off_what_is_resent_meanwhile(world: World) -> None:
    endpoint = await add(world)
    await told(world)
    [due] = await claim(world, endpoint)

    await messages.resend(world.database, due.message_id)
    late = await deliveries.conclude(world.database, due, BAD)
    again = await claim(world, endpoint)

    assert late.fate is Fate.STALE
    assert [each.message_id for each in again] == [due.message_id]


async def test_resending_what_is_not_there_is_refused(world: World) -> None:
    endpoint = await add(world)
    await told(world)
    [due] = await claim(world, endpoint)

    with pytest.raises(NotFound, match="there is no message 'msg_1'"):
        await messages.resend(world.database, "msg_1")
    with pytest.raises(NotFound, match=f"there is no message '{due.message_id}' for 'hook_1'"):
        await messages.resend(world.database, due.message_id, "hook_1")


async def test_endpoint_whose_turn_came_first_goes_first_and_none_hides_another(world: World) -> None:
    slow, quick = await add(world), await add(world)
    await told(world, 3)
    for due in await claim(world, quick, 1):
        await deliveries.conclude(world.database, due, GOOD)
    await world.database.move_clock(1)

    order = await deliveries.due_endpoints(world.database)

    assert [each.endpoint_id for each in order] == [slow, quick]
    assert {each.tenant_id for each in order} == {world.tenant.id}


async def test_outbox_is_counted_without_disabled_endpoints(world: World) -> None:
    first, second = await add(world), await add(world)
    await told(world, 2)
    await world.database.move_clock(50)
    await endpoints.disable(world.database, second, "too loud")

    stats = await messages.stats(world.database)
    for due in await claim(world, first):
        await deliveries.conclude(world.database, due, GOOD)
    empty = await messages.stats(world.database)

    assert stats.pending == 2
    assert 50 <= stats.oldest_seconds < 110
    assert (empty.pending, empty.oldest_seconds) == (0, 0.0)


async def test_log_shows_the_newest_first_and_no_more_than_asked(world: World) -> None:
    endpoint = await add(world)
    await told(world, 3)

    newest = await messages.log(world.database, limit=2)
    one = await messages.log(world.database, message_id=newest[1].delivery.message_id)

    assert newest[0].delivery.message_id > newest[1].delivery.message_id
    assert [entry.delivery.message_id for entry in one] == [newest[1].delivery.message_id]
    with pytest.raises(NotFound, match="there is no webhook endpoint 'hook_1'"):
        await messages.log(world.database, endpoint_id="hook_1")
    assert one[0].delivery.endpoint_id == endpoint
    assert newest[0].delivery.created_at - newest[1].delivery.created_at < timedelta(minutes=5)


async def test_old_messages_leave_the_log_and_those_that_wait_stay(world: World) -> None:
    endpoint = await add(world)
    await told(world)
    [due] = await claim(world, endpoint)
    await deliveries.conclude(world.database, due, GOOD)
    await told(world)
    await world.database.move_clock(31 * DAY)

    erased = [await retention.forget_deliveries(world.database, 30 * DAY) for _ in range(2)]
    [left] = await messages.log(world.database)
    await endpoints.disable(world.database, endpoint, "gone")
    young = await retention.forget_deliveries(world.database, 30 * DAY)
    await world.database.move_clock(31 * DAY)

    assert erased == [1, 0]
    assert (left.delivery.state, young) == ("pending", 0)
    assert await retention.forget_deliveries(world.database, 30 * DAY) == 1, "nobody enabled its endpoint for a month"


async def test_message_sent_again_by_hand_waits_for_its_disabled_endpoint_as_long_as_any_other(world: World) -> None:
    endpoint = await add(world)
    await told(world)
    await endpoints.disable(world.database, endpoint, "gone")
    await world.database.move_clock(31 * DAY)
    [entry] = await messages.log(world.database)
    await messages.resend(world.database, entry.delivery.message_id)

    young = await retention.forget_deliveries(world.database, 30 * DAY)
    await world.database.move_clock(31 * DAY)

    assert (young, await retention.forget_deliveries(world.database, 30 * DAY)) == (0, 1)


async def test_log_asks_each_try_once_where_it_belongs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    added = [await add(world), await add(world)]
    await told(world, 6)
    for endpoint in added:
        for due in await claim(world, endpoint):
            await deliveries.conclude(world.database, due, BAD)
    asked: list[str] = []

    class Attempt:
        def __init__(self, row: Any) -> None:
            self._row = row

        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            return getattr(self._row, name)

    def counting(kind: type[Any], row: Any) -> Any:
        return Attempt(row) if kind is WebhookAttempt else record(kind, row)

    monkeypatch.setattr(messages, "record", counting)
    log = await messages.log(world.database)
    often = len(asked)

    assert [len(entry.attempts) for entry in log] == [1] * 12
    for entry in log:
        [attempt] = entry.attempts
        assert (attempt.message_id, attempt.endpoint_id) == (entry.delivery.message_id, entry.delivery.endpoint_id)
    assert often <= 2 * 12, "not once for each message in the log"


async def test_removed_endpoint_takes_its_messages_along_in_transactions_of_some_each(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, other = await add(world), await add(world)
    await told(world, 5)
    [due, *_] = await claim(world, endpoint)
    await deliveries.conclude(world.database, due, BAD)
    monkeypatch.setattr(endpoints, "ROWS", 2)
    gone: list[tuple[str, int]] = []
    in_one: set[Transaction] = set()
    execute = Transaction.execute

    async def counting(self: Transaction, statement: Any, parameters: Any = None) -> Any:
        result = await execute(self, statement, parameters)
        if isinstance(statement, Delete):
            in_one.add(self)
            gone.append((str(statement.table), result.rowcount))
        return result

    monkeypatch.setattr(Transaction, "execute", counting)
    await endpoints.remove(world.database, endpoint)

    assert gone == [*[("webhook_deliveries", rows) for rows in (2, 2, 1, 0)], ("webhook_endpoints", 1)]
    assert len(in_one) == len(gone)
    assert {entry.delivery.endpoint_id for entry in await messages.log(world.database)} == {other}


async def test_removal_that_was_broken_off_leaves_the_endpoint_disabled_to_be_removed_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = await add(world)
    await told(world, 3)

    with monkeypatch.context() as broken:
        broken.setattr(endpoints, "_REMOVE", text("SELECT broken"))
        with pytest.raises(DBAPIError):
            await endpoints.remove(world.database, endpoint)
    reason = await disabled_reason(world)
    await told(world)
    left = await messages.log(world.database)
    await endpoints.remove(world.database, endpoint)

    assert (reason, left) == ("it is being removed", [])
    assert await endpoints.list_endpoints(world.database) == []


async def test_removal_goes_on_in_short_steps_where_retention_erases_some_of_a_batch(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    if world.database.dialect == "sqlite":
        return  # has one writer at a time
    endpoint = await add(world)
    await told(world, 5)
    monkeypatch.setattr(endpoints, "ROWS", 2)
    gone: Counter[str] = Counter()
    execute = Transaction.execute

    async def counting(self: Transaction, statement: Any, parameters: Any = None) -> Any:
        result = await execute(self, statement, parameters)
        if isinstance(statement, Delete):
            gone[str(statement.table)] += result.rowcount
        return result

    async with world.database.write() as retaining:
        oldest = "(SELECT message_id FROM webhook_deliveries ORDER BY message_id LIMIT 1)"
        await retaining.execute(text(f"DELETE FROM webhook_deliveries WHERE message_id IN {oldest}"))
        monkeypatch.setattr(Transaction, "execute", counting)
        removal = asyncio.create_task(endpoints.remove(world.database, endpoint))
        await blocked(world)
    await removal

    assert gone == {"webhook_deliveries": 4, "webhook_endpoints": 1}, "none was left to go with the endpoint"


async def blocked(world: World) -> None:
    """Waits until somebody waits for a lock: the server tells nobody of it."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    while True:
        async with world.database.read() as connection:
            if (await connection.execute(text(waiting))).scalar_one():
                return
        await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("asked", "index"),
    [
        (messages._newest(None, None, 9), "webhook_deliveries_newest"),
        (messages._newest(None, "hook_1", 9), "webhook_deliveries_of_endpoint"),
        (endpoints._REMOVE_SOME, "webhook_deliveries_of_endpoint"),
    ],
    ids=["the whole log", "an endpoint's log", "removal"],
)
async def test_messages_are_found_by_their_indexes(asked: Select[Any] | Delete, index: str, world: World) -> None:
    async with world.database.write() as transaction:
        dialect = transaction.connection.dialect
        if dialect.name == "postgresql":
            await transaction.execute(text("SET LOCAL enable_seqscan = off"))  # it would be right: the table is empty
        explain = "EXPLAIN" if dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
        statement = asked.compile(dialect=dialect)
        values = statement.construct_params({"endpoint": "hook_1", "most": 9})
        given = tuple(values[name] for name in statement.positiontup or ()) if statement.positional else values
        plan = (await transaction.connection.exec_driver_sql(f"{explain} {statement}", given)).all()

    assert index in str(plan)
