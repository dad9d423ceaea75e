"""Fetches assets' bytes from where callers say. Ordered by the asset servicer; run by the server as one of its tasks;
knows objects and uploads, and no message.

    CreateAsset --order--> a row of fetches --claimed by any gateway--> incoming/assets/ID --> judged as an upload is

The row outlives the gateway (store/fetches.py). A token does not: it stays in the memory of the gateway that was given
it, which speaks for it until the fetch has ended, and where the gateway ends first, the asset is in error and says so.
Neither a token nor more of a URL than its host is ever logged.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

from gateway.hub import Folder, Hub, Unfetchable, bearer
from gateway.metrics import Metrics
from gateway.outbound import Outbound, OutboundFailed, OutboundNowhere, OutboundRefused
from gateway.uploads import Uploads, incoming_key
from store import assets, fetches
from store.assets import NewAsset
from store.database import Database
from store.errors import NotFound, StateForbids
from store.fetches import Hold, NewFetch
from store.leftovers import UNJUDGED
from store.objects import Objects
from store.tables import Asset, Fetch

AT_ONCE = 8  # fetches of one gateway
A_TENANT = 4  # of these, so that slow servers of one tenant's hold up nobody else
PENDING = 1000  # assets of one tenant that are still to be fetched
LEASE = 30.0  # seconds after which a silent gateway's fetch is another one's
RENEW = 5.0  # seconds between two renewals, and until a deleted asset's fetch ends
SPEAK = fetches.SPEAK  # seconds between two words for the tokens that are here
POLL = 5.0  # seconds between two looks for what other gateways were told, or left behind
TRIES = 5  # begun so often, then given up
NOWHERE_TRIES = 3  # likewise where the name has no address: most often it is mistyped
BACKOFF = (2.0, 10.0, 30.0, 60.0)  # seconds after the first try that failed, the second, ...
PICTURE_SECONDS = 120.0  # for one try
WEIGHTS_SECONDS = 3600.0  # likewise; 32 GiB in an hour are 75 Mbit/s

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class End:
    """How one try ended; with nothing said, the bytes are there and judged."""

    reason: str = ""
    """A stable word where the bytes cannot be had."""
    sentence: str = ""
    """The same for people."""
    tries: int = 1
    """So many in all may be made, for another one may have more luck."""
    source: dict[str, Any] = field(default_factory=dict)
    """Where trainers fetch them by themselves."""
    data: dict[str, Any] = field(default_factory=dict)
    """The asset's data then."""


#: There is nothing to fetch any more.
GONE = End()


class Fetches:
    """The orders and what is under way.

    Args:
        hub: Where repositories are looked for. None: hf_repo is not fetched.
        tune_lease: Length of a tune's lease, in seconds.
    """

    def __init__(
        self,
        database: Database,
        objects: Objects,
        uploads: Uploads,
        outbound: Outbound,
        hub: Hub | None,
        metrics: Metrics,
        *,
        tune_lease: float,
    ) -> None:
        self._database = database
        self._objects = objects
        self._uploads = uploads
        self._outbound = outbound
        self._hub = hub
        self._metrics = metrics
        self._tune_lease = tune_lease
        # By the name that the row has for it. Written by order, read by what fetches, emptied by that and by what
        # speaks for them.
        self._tokens: dict[str, str] = {}
        self._unstored: set[str] = set()  # names of those whose row is still to be committed
        self._under_way: dict[asyncio.Task[None], Fetch] = {}
        self._woken = asyncio.Event()  # there is something new to fetch here, or a free place to do so

    @property
    def has_hub(self) -> bool:
        """Whether repositories are fetched."""
        return self._hub is not None

    @property
    def tokens(self) -> int:
        """How many are in this gateway's memory."""
        return len(self._tokens)

    def faults(self, url: str) -> list[OutboundRefused]:
        """Judges a caller's URL before anything is stored: each reason why it will never do."""
        return self._outbound.faults(url)

    async def order(self, new: NewAsset, fetch: NewFetch, token: str | None = None) -> Asset:
        """Makes an asset whose bytes will be fetched, soon and in the background.

        Raises:
            QueueFull: Too many of the tenant's wait.
        """
        token_ref = None
        if token:  # before the row is there, for it may be claimed at once
            token_ref = secrets.token_hex(8)
            self._tokens[token_ref] = token
            self._unstored.add(token_ref)
        try:
            ordered = NewFetch(fetch.url, fetch.hf_repo, fetch.skip_validation, token_ref)
            row = await fetches.order(self._database, new, ordered, pending_limit=PENDING)
        except BaseException:
            self._tokens.pop(token_ref or "", None)
            raise
        finally:
            self._unstored.discard(token_ref or "")
        self._woken.set()
        return row

    async def run(self) -> None:
        """Fetches what there is until cancelled. What is under way then is due for another gateway a lease later."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._speak_for_tokens())
            while True:
                self._woken.clear()
                try:
                    await self._begin(tasks)
                except Exception as exc:  # a database that is away is no reason to end the gateway
                    log.warning(f"No fetch could be claimed: {exc}", action="fetch_claim_failed")
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL):
                        await self._woken.wait()

    async def _begin(self, tasks: asyncio.TaskGroup) -> None:
        """Claims one after the other while there is a place for it."""
        while len(self._under_way) < AT_ONCE:
            owners = [fetch.tenant_id for fetch in self._under_way.values()]
            busy = [owner for owner in set(owners) if owners.count(owner) >= A_TENANT]
            claimed = await fetches.claim(
                self._database,
                LEASE,
                tune_lease=self._tune_lease,
                limit=1,
                token_refs=list(self._tokens),
                busy_tenants=busy,
                under_way=[fetch.asset_id for fetch in self._under_way.values()],
            )
            if not claimed:
                return
            task = tasks.create_task(self._attend(claimed[0]))
            self._under_way[task] = claimed[0]
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        self._woken.set()

    async def _speak_for_tokens(self) -> None:
        """Lets other gateways know that those of fetches which wait are still here, and drops those that nothing wants:
        the asset was deleted, say.
        """
        while True:
            await asyncio.sleep(SPEAK)
            here = set(self._tokens) - self._unstored
            if not here:
                continue
            try:
                wanted = await fetches.keep(self._database, sorted(here))
            except Exception as exc:  # as below: the next time may do
                log.warning(f"The tokens of fetches could not be kept: {exc}", action="tokens_not_kept")
                continue
            for token_ref in here - wanted:
                self._tokens.pop(token_ref, None)

    async def _attend(self, fetch: Fetch) -> None:
        """One try, for as long as it is ours."""
        work = asyncio.create_task(self._try(fetch))
        try:
            while not (await asyncio.wait({work}, timeout=RENEW))[0]:
                hold = await self._renew(fetch)
                if hold is not Hold.KEPT:
                    self._leave(fetch, hold)
                    return
            # Here and not in the try: a renewal at the same moment would undo it, or take it for another's.
            await self._conclude(fetch, work.result())
        finally:
            work.cancel()
            await asyncio.wait({work})

    async def _renew(self, fetch: Fetch) -> Hold:
        try:
            return await fetches.put_off(self._database, fetch, LEASE)
        except Exception as exc:  # another gateway may begin it, too: both would bring the same bytes
            log.warning(f"A fetch could not be renewed: {exc}", action="fetch_not_renewed", asset_id=fetch.asset_id)
            return Hold.KEPT

    async def _try(self, fetch: Fetch) -> End:
        """Brings the bytes and has them judged, or says why not."""
        try:
            return await self._bring(fetch)
        except (OutboundRefused, Unfetchable) as exc:
            return End(exc.reason, exc.sentence)
        except OutboundFailed as exc:
            return End(exc.reason, exc.sentence, NOWHERE_TRIES if isinstance(exc, OutboundNowhere) else TRIES)
        except (NotFound, StateForbids):  # deleted, or ended otherwise, meanwhile
            return GONE
        except Exception as exc:  # a store is away, say; not the error's own words, which may hold a URL
            what = type(exc).__name__
            log.warning(f"A fetch failed by {what}", action="fetch_failed", asset_id=fetch.asset_id, error=what)
            return End("FETCH_FAULT", "the bytes could not be stored, by a fault of ours", TRIES)

    async def _conclude(self, fetch: Fetch, end: End) -> None:
        """Records how the try ended. Where that fails, the lease ends, and some gateway tries once more."""
        try:
            if fetch.tries < end.tries:
                await self._again(fetch, end)
                return
            if end.reason:
                sentence = f"{end.sentence} ({fetch.tries} tries)" if end.tries > 1 else end.sentence
                hold = await fetches.fail(self._database, fetch, end.reason, sentence)
                what, action = f"A fetch is given up: {sentence}", "fetch_given_up"
            elif end.source:
                hold = await fetches.adopt(self._database, fetch, end.source, end.data)
                what, action = "An asset is a repository at a commit", "asset_ready"
            else:
                hold = await fetches.finish(self._database, fetch)
                what, action = "An asset's bytes were fetched", "fetched"
        except Exception as exc:
            log.warning(f"The end of a fetch is not recorded: {exc}", action="fetch_lost", asset_id=fetch.asset_id)
            return
        if hold is not Hold.KEPT:
            self._leave(fetch, hold)
            return
        self._forget(fetch)
        if end is not GONE:
            self._metrics.fetched(end.reason)
            log.info(what, action=action, asset_id=fetch.asset_id, reason=end.reason)

    async def _again(self, fetch: Fetch, end: End) -> None:
        seconds = BACKOFF[min(fetch.tries, len(BACKOFF)) - 1] * random.uniform(0.75, 1.25)  # noqa: S311  - spreads tries
        hold = await fetches.put_off(self._database, fetch, seconds)
        if hold is not Hold.KEPT:
            self._leave(fetch, hold)
            return
        what = f"A fetch failed and is tried again: {end.sentence}"
        log.info(what, action="fetch_put_off", asset_id=fetch.asset_id, reason=end.reason, tries=fetch.tries)

    async def _bring(self, fetch: Fetch) -> End:
        row = await assets.find(self._database, fetch.tenant_id, fetch.asset_id)
        if row.status not in UNJUDGED:  # by another gateway, which died before it could say so
            return GONE
        token = self._tokens.get(fetch.token_ref or "")
        if fetch.token_ref and token is None:
            sentence = (
                "the gateway that was given the token has ended, and a token is never stored: create the asset anew"
            )
            raise Unfetchable("TOKEN_LOST", sentence)
        if fetch.tries > TRIES:
            sentence = f"its fetch was begun {TRIES} times and came to no end"
            raise Unfetchable("FETCH_ABANDONED", sentence)

        max_bytes = self._uploads.most_bytes(row.asset_type)
        url = fetch.url
        if fetch.hf_repo is not None:
            hub = self._asked_hub()
            found = hub.choose(await hub.look(fetch.hf_repo, token), row.asset_type, max_bytes=max_bytes)
            if isinstance(found, Folder):
                return End(source=found.source, data={**row.data, "file_format": "safetensors"})
            url = found.url
        assert url is not None  # a row has one of the two
        seconds = PICTURE_SECONDS if row.asset_type == "file" else WEIGHTS_SECONDS
        async with self._outbound.stream(
            url, max_bytes=max_bytes, timeout_seconds=seconds, secret_headers=bearer(token)
        ) as chunks:
            await self._objects.write(incoming_key(row.id), chunks)
        await self._uploads.complete(fetch.tenant_id, row.id, skip_validation=fetch.skip_validation)
        return End()

    def _asked_hub(self) -> Hub:
        if self._hub is None:  # it was set when this was ordered
            raise Unfetchable("FETCHING_NOT_CONFIGURED", "TUNESMITH_HUB_URL is not set any more")
        return self._hub

    def _leave(self, fetch: Fetch, hold: Hold) -> None:
        """It is ours no more."""
        if hold is Hold.GONE:
            log.info("A fetch ends: its asset is gone", action="fetch_ended", asset_id=fetch.asset_id)
            self._forget(fetch)
        else:  # its token stays: who has the fetch now may be a later try of this gateway's
            what = "A fetch is left to who took it when its lease had ended"
            log.info(what, action="fetch_left", asset_id=fetch.asset_id, tries=fetch.tries)

    def _forget(self, fetch: Fetch) -> None:
        """Its token, if it had one, has served."""
        self._tokens.pop(fetch.token_ref or "", None)
