"""Delivers the outbox: finds which endpoints have something due, and sends it. One of the server's tasks, in every
gateway; what is due and what a try leads to, store/webhooks/deliveries says, and what may be reached, outbound.

    wake-up, or 2 s --> endpoints with something due --> a lane each: claim a few, send them at once, record each

An endpoint has one lane at a time in each gateway, and a lane ends with the few that it has claimed; so a slow receiver
holds up its own messages alone, for as long as one try may take, and one with a backlog lets the others go first. A
tenant takes no lane after which it would have more than are free: half of them at most, and the last one nobody does.

A gateway may die between the receiver's answer and its record: the message falls due again when the claim's lease
ends. Receivers get it at least once, under the same id each time, and in no promised order.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import structlog

from gateway.outbound import Outbound, OutboundError
from gateway.webhooks.metrics import WebhookMetrics
from gateway.webhooks.signatures import signed_headers
from store.database import Database
from store.webhooks import deliveries
from store.webhooks.deliveries import Answer, Due, DueEndpoint, Fate

TIMEOUT = 15.0  # seconds for one try, from the look-up of the name to the end of the answer
LEASE = 60.0  # seconds of a claim: a try, its record, and a loop that was late for both
POLL = 2.0  # seconds between two looks, where no wake-up comes
LANES = 64  # of which one stays free: 63 endpoints at a time
ABREAST = 8  # messages of one endpoint at a time

log = structlog.get_logger(__name__)


class Webhooks:
    """One gateway's part of the deliveries."""

    def __init__(self, database: Database, outbound: Outbound, metrics: WebhookMetrics) -> None:
        self._database = database
        self._outbound = outbound
        self._metrics = metrics
        self._woken = database.wakeups.subscribe("webhook")
        self._stopping = False
        #: Endpoints that have a lane, each with its tenant; written by run() and the lanes.
        self._busy: dict[str, str] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    async def run(self) -> None:
        """Delivers until cancelled, or until close()."""
        async with self._woken, asyncio.TaskGroup() as lanes:
            while not self._stopping:
                found = await self._due()
                if self._stopping:  # close() has found no lane meanwhile, and does not wait
                    break
                self._open(lanes, found)
                await self._woken.wait(POLL)

    async def close(self, grace_seconds: float) -> None:
        """Claims nothing more; waits for the tries under way, at most the grace time."""
        self._stopping = True
        self._woken.add([""])
        try:
            async with asyncio.timeout(grace_seconds):
                await self._idle.wait()
        except TimeoutError:
            log.info("Webhooks under way are left to their leases", action="webhooks_left", endpoints=len(self._busy))

    async def _due(self) -> list[DueEndpoint]:
        try:
            return await deliveries.due_endpoints(self._database)
        except Exception as exc:  # a database that is away is no reason to end the gateway; there is a next look
            log.warning(f"Webhooks wait: {exc}", action="webhooks_wait")
            return []

    def _open(self, lanes: asyncio.TaskGroup, found: Sequence[DueEndpoint]) -> None:
        taken = Counter(self._busy.values())
        for due in found:
            left = LANES - len(self._busy) - 1  # after this one
            if due.endpoint_id in self._busy or taken[due.tenant_id] + 1 > left:
                continue
            taken[due.tenant_id] += 1
            self._busy[due.endpoint_id] = due.tenant_id
            self._idle.clear()
            lanes.create_task(self._lane(due.endpoint_id), name=f"webhooks of {due.endpoint_id}")

    async def _lane(self, endpoint_id: str) -> None:
        """Some of an endpoint's messages; then, and soon, its next turn."""
        try:
            claimed = await deliveries.claim(self._database, endpoint_id, ABREAST, LEASE)
            # Whatever surprises one of them, the lane is taken until the last has ended.
            for surprise in await asyncio.gather(*map(self._deliver, claimed), return_exceptions=True):
                if surprise is not None:
                    sentence = f"A message to {endpoint_id} broke: {type(surprise).__name__}"
                    log.error(sentence, action="webhook_broke", endpoint_id=endpoint_id, exc_info=surprise)
            if claimed:
                self._woken.add([endpoint_id])
        except Exception as exc:  # whatever the store throws: no reason to end the gateway, and there is a next look
            log.warning(f"Webhooks wait: {exc}", action="webhooks_wait", endpoint_id=endpoint_id)
        finally:
            del self._busy[endpoint_id]
            if not self._busy:
                self._idle.set()

    async def _deliver(self, due: Due) -> None:
        """One try, and its record. Where that cannot be written, the message falls due again."""
        answer = await self._send(due)
        try:
            verdict = await deliveries.conclude(self._database, due, answer)
        except Exception as exc:  # as in the lane
            log.warning(
                f"{due.message_id} was sent, which could not be recorded: it will be sent again: {exc}",
                action="webhook_unrecorded",
                message_id=due.message_id,
                endpoint_id=due.endpoint_id,
            )
            return
        self._metrics.tried(verdict.fate, answer.seconds)
        self._tell(due, answer, verdict)
        if verdict.disabled is not None:
            self._metrics.disabled()

    async def _send(self, due: Due) -> Answer:
        body = due.body.encode()
        begun = time.monotonic()
        try:
            signed = signed_headers(due.message_id, int(time.time()), body, due.secrets)
            headers = {"content-type": "application/json", **signed}
            answer = await self._outbound.post(due.url, content=body, headers=headers, timeout_seconds=TIMEOUT)
            pause = retry_after(answer.headers)
        except OutboundError as exc:
            return Answer(time.monotonic() - begun, error=exc.reason)
        except Exception as exc:  # a fault of ours counts as a try too, or the message would go round for ever
            log.exception(f"{due.message_id} could not be sent", action="webhook_broke", message_id=due.message_id)
            return Answer(time.monotonic() - begun, error=type(exc).__name__)
        return Answer(time.monotonic() - begun, status=answer.status, retry_after_seconds=pause)

    def _tell(self, due: Due, answer: Answer, verdict: deliveries.Verdict) -> None:
        """One line. It has no URL: that may hold a secret."""
        how = answer.error or f"HTTP {answer.status}"
        facts = {"message_id": due.message_id, "endpoint_id": due.endpoint_id, "type": due.event_type, "answer": how}
        match verdict.fate:
            case Fate.GIVEN_UP:
                log.warning(
                    f"{due.message_id} was given up after its last try: {how}", action="webhook_given_up", **facts
                )
            case Fate.RETRIED:
                log.info(f"{due.message_id} is to be tried again: {how}", action="webhook_retried", **facts)
            case _:
                log.debug(f"{due.message_id} was sent: {how}", action=f"webhook_{verdict.fate}", **facts)
        if verdict.disabled is not None:
            sentence = f"{due.endpoint_id} is told nothing more: {verdict.disabled}"
            log.warning(sentence, action="webhook_endpoint_disabled", **facts)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer's Retry-After asks for, written as a number or as a date; None where it says neither."""
    said = headers.get("retry-after", "").strip()
    if said.isascii() and said.isdecimal() and len(said) < 10:
        return float(said)
    try:
        at = parsedate_to_datetime(said)
    except (ValueError, OverflowError):  # the latter of a year or an offset past all bounds
        return None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
