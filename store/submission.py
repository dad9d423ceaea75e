"""Accepts tunes, many in one transaction. Called by tunes.submit() through a group commit; knows no trainers.

lock the tenants' rows            from here on nobody else submits for them: names, request ids and depth hold still
look up names, request ids, files and checkpoints, of all submissions at once
decide one by one, in memory
insert tunes and first events, raise counters, each with one statement
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from store.assets import look_up
from store.database import Transaction
from store.dialect import among, now
from store.errors import InvalidReference, NameTaken, NotFound, QueueFull, RequestReused, StoreError
from store.ids import new_id
from store.states import TuneState
from store.tables import Asset, Tune, assets, events, record, tenants, tunes

REPLAY_WINDOW = timedelta(minutes=10)  # in which a retry without a request_id is known by its name and body
FILES = "details.lora_tune.files"
CHECKPOINT = "details.lora_tune.base_checkpoint"


@dataclass(frozen=True)
class NewTune:
    """What a caller asks for."""

    tenant_id: str
    """Whose it will be."""
    name: str
    """Unique among the tenant's living tunes."""
    checkpoint_ref: str
    """The base checkpoint as the caller names it: its id, its name or "owner:name"."""
    details: dict[str, Any]
    """LoraTune as requested, in the JSON profile's names. Its `files` are replaced by the field below, and its
    `base_checkpoint` by the one that is found.
    """
    files: Sequence[tuple[str, str | None]]
    """(file asset id, caption), in order."""
    steps: int
    """Optimizer steps wanted."""
    trigger_words: Sequence[str]
    """For filters."""
    request_hash: str
    """Of the request's body, without request_id: tells a retry from another request."""
    checkpoint_engine: str | None = None
    """What the caller takes the base checkpoint's engine to be; None: whatever it is."""
    description: str = ""
    """For people."""
    continue_on_rejection: bool = False
    """Whether it goes on without refused files."""
    metadata: dict[str, str] = field(default_factory=dict)
    """The caller's own pairs."""
    priority: int = 0
    """Among the tenant's own tunes the higher goes first."""
    request_id: str | None = None
    """The caller's, for retries."""
    traceparent: str | None = None
    """W3C trace context of the request: whoever works on the tune logs by it. No part of what is asked for."""
    memory_class: int = 0
    """GiB of device memory that it is estimated to need; 0: any device will do. Few distinct values, please."""


@dataclass(frozen=True)
class Named:
    """The assets that a request names."""

    tenant_id: str
    """Who asks."""
    checkpoint_ref: str
    """As in NewTune."""
    checkpoint_engine: str | None
    """Likewise."""
    file_ids: Sequence[str]
    """In order."""


@dataclass(frozen=True)
class Submitted:
    """What became of a submission."""

    tune: Tune
    """The tune, this request's or the earlier one's."""
    replayed: bool
    """Whether it is the earlier one's."""


async def write_submissions(transaction: Transaction, news: Sequence[NewTune]) -> Sequence[Submitted | Exception]:
    """Writes the tunes that can be accepted; for each, in order, what became of it."""
    desk = await _look_up(transaction, news)
    answers: list[Submitted | Exception] = []
    for new in news:
        try:
            answers.append(desk.judge(new))
        except StoreError as refusal:
            answers.append(refusal)
    await _write(transaction, desk)
    return answers


async def check_submission(transaction: Transaction, new: NewTune) -> Submitted:
    """The same for one, writing nothing."""
    return (await _look_up(transaction, [new])).judge(new)


async def check_named(connection: AsyncConnection, named: Named) -> list[tuple[str, str]]:
    """Within a read: every asset that points nowhere or will not do, with its field, in a request that may break rules.
    What PostgreSQL cannot be asked for (NUL) is there for nobody.
    """
    checkpoint = None
    if "\0" not in named.checkpoint_ref:
        checkpoint = await look_up(connection, named.tenant_id, named.checkpoint_ref)
    ids = list({id for id in named.file_ids if "\0" not in id})
    files = {row.id: row for row in await connection.execute(_FILES_BY_ID, {"files": ids})}
    return [*_unfit(named, checkpoint, files)]


@dataclass
class _Tenant:
    """A tenant whose row is locked."""

    queued: int
    queue_limit: int


@dataclass
class _Desk:
    """All that the submissions of one transaction are judged by; what is accepted is added as it goes."""

    now: datetime
    tenants: dict[str, _Tenant]
    by_name: dict[tuple[str, str], Tune]
    by_request: dict[tuple[str, str], Tune]
    checkpoints: dict[tuple[str, str], Asset | None]
    files: dict[str, Any]
    accepted: list[Tune] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def judge(self, new: NewTune) -> Submitted:
        """Accepts the tune or finds the one that its request made before. StoreError: neither."""
        earlier = self._earlier(new)
        if earlier is not None:
            return Submitted(earlier, replayed=True)
        violations = [*self._violations(new)]
        if violations:
            raise InvalidReference(violations)
        tenant = self.tenants[new.tenant_id]
        if tenant.queued >= tenant.queue_limit:
            raise QueueFull(f"{tenant.queued} tunes are waiting already, as many as may")
        checkpoint = self.checkpoints[new.tenant_id, new.checkpoint_ref]
        assert checkpoint is not None, "a violation otherwise"
        tune = self._accept(new, checkpoint)
        tenant.queued += 1
        return Submitted(tune, replayed=False)

    def _earlier(self, new: NewTune) -> Tune | None:
        """The tune that this request made before. RequestReused, NameTaken: another request did."""
        if new.tenant_id not in self.tenants:
            raise NotFound(f"there is no tenant {new.tenant_id}")
        if new.request_id is not None:
            same_id = self.by_request.get((new.tenant_id, new.request_id))
            if same_id is not None and same_id.request_hash != new.request_hash:
                raise RequestReused(f"request_id {new.request_id!r} came before with another request")
            if same_id is not None:
                return same_id
        same_name = self.by_name.get((new.tenant_id, new.name))
        if same_name is None:
            return None
        # A request_id that is new says that this is no retry.
        retried = new.request_id is None and same_name.request_hash == new.request_hash
        if retried and same_name.created_at > self.now - REPLAY_WINDOW:
            return same_name
        raise NameTaken(f"there is a tune {new.name!r} already")

    def _violations(self, new: NewTune) -> Iterator[tuple[str, str]]:
        """Everything in the request that points nowhere. Another's asset is no different from none."""
        named = Named(new.tenant_id, new.checkpoint_ref, new.checkpoint_engine, [id for id, _ in new.files])
        yield from _unfit(named, self.checkpoints[new.tenant_id, new.checkpoint_ref], self.files)
        yield from _unstorable(new)

    def _accept(self, new: NewTune, checkpoint: Asset) -> Tune:
        engine = checkpoint.engine or ""
        details = {
            **new.details,
            "base_checkpoint": {"checkpoint_id": checkpoint.id, "engine": engine, "name": checkpoint.name},
            "files": [{"file_id": id, "caption": caption} for id, caption in new.files],
        }
        given = {
            "id": new_id("tune"),
            "tenant_id": new.tenant_id,
            "name": new.name,
            "description": new.description,
            "engine": engine,
            "memory_class": new.memory_class,
            "checkpoint_id": checkpoint.id,
            "checkpoint_ref": new.checkpoint_ref,
            "checkpoint_name": checkpoint.name,
            "details": details,
            "trigger_words": list(new.trigger_words),
            "steps": new.steps,
            "continue_on_rejection": new.continue_on_rejection,
            "metadata": dict(new.metadata),
            "priority": new.priority,
            "request_id": new.request_id,
            "request_hash": new.request_hash,
            "traceparent": new.traceparent,
            "state": TuneState.QUEUED,
            "event_seq": 1,
            "created_at": self.now,
            "updated_at": self.now,
        }
        empty: dict[str, Any] = {"output_lora_ids": [], "rejected": [], "unready": [], "earlier_snapshot": None}
        tune = record(Tune, {**_BLANK, **empty, **given})
        self.rows.append(given)
        self.accepted.append(tune)
        self.by_name[new.tenant_id, new.name] = tune
        if new.request_id is not None:
            self.by_request[new.tenant_id, new.request_id] = tune
        return tune


def _unfit(named: Named, checkpoint: Asset | None, files: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What stands against the assets: the checkpoint, and those of the files that were found, by id."""
    path, ref = f"{CHECKPOINT}.checkpoint_id", repr(named.checkpoint_ref)
    if checkpoint is None:
        yield path, f"there is no asset {ref}"
    elif checkpoint.asset_type != "checkpoint":
        yield path, f"the asset {ref} is a {checkpoint.asset_type}, and not a checkpoint"
    elif checkpoint.status != "ready":
        yield path, f"the checkpoint {ref} is {checkpoint.status}, and not ready"
    elif named.checkpoint_engine is not None and named.checkpoint_engine != checkpoint.engine:
        sentence = f"the checkpoint's engine is {checkpoint.engine!r}, not {named.checkpoint_engine!r}"
        yield f"{CHECKPOINT}.engine", sentence
    for place, file_id in enumerate(named.file_ids):
        asset = files.get(file_id)
        path = f"{FILES}[{place}].file_id"
        if asset is None or asset.tenant_id != named.tenant_id:
            yield path, f"there is no file {file_id!r}; wanted the id of one of your own"  # whatever there is of others
        elif asset.asset_type != "file":
            yield path, f"{file_id!r} is a {asset.asset_type}, not a file"


def _unstorable(new: NewTune) -> Iterator[tuple[str, str]]:
    """PostgreSQL stores no NUL, in a string or in JSON; so neither database is asked to."""
    texts = {"name": new.name, "description": new.description, "request_id": new.request_id or ""}
    documents = {"details.lora_tune": new.details, "metadata": new.metadata, FILES: [list(file) for file in new.files]}
    for path, string in texts.items():
        if "\0" in string:
            yield path, "holds a NUL character"
    for path, document in documents.items():
        if "\\u0000" in json.dumps(document):
            yield path, "holds a NUL character"


async def _look_up(transaction: Transaction, news: Sequence[NewTune]) -> _Desk:
    wanted = {
        "tenants": sorted({new.tenant_id for new in news}),
        "names": [new.name for new in news],
        "requests": [new.request_id for new in news if new.request_id is not None],
        "files": list({id for new in news for id, _ in new.files}),
    }
    locked = (await transaction.execute(_LOCK_TENANTS, wanted)).all()
    named = [record(Tune, row) for row in await transaction.execute(_NAMED, wanted)]
    requested = []
    if wanted["requests"]:
        requested = [record(Tune, row) for row in await transaction.execute(_REQUESTED, wanted)]
    checkpoints = await _look_up_checkpoints(transaction, news)
    files = await transaction.execute(_FILES_BY_ID, wanted)
    return _Desk(
        now=locked[0].now if locked else datetime.min,  # not asked for: without a tenant nothing is accepted
        tenants={row.id: _Tenant(row.queued, row.queue_limit) for row in locked},
        by_name={(tune.tenant_id, tune.name): tune for tune in named},
        by_request={(tune.tenant_id, tune.request_id): tune for tune in requested if tune.request_id is not None},
        checkpoints=checkpoints,
        files={row.id: row for row in files},
    )


async def _look_up_checkpoints(
    transaction: Transaction, news: Sequence[NewTune]
) -> dict[tuple[str, str], Asset | None]:
    """By tenant and what it calls them. Each is looked up for itself: who asks at the same time mostly asks for the
    same, and a name that thousands of assets have must not bring them all.
    """
    asked = dict.fromkeys((new.tenant_id, new.checkpoint_ref) for new in news)
    return {(tenant, ref): await look_up(transaction.connection, tenant, ref) for tenant, ref in asked}


#: Locked in the order of their ids, so that two gateways' groups never wait for one another in a circle. NO KEY UPDATE:
#: inserts of assets, which refer to the tenant, need not wait.
_LOCK_TENANTS = (
    select(tenants.c.id, tenants.c.queued, tenants.c.queue_limit, now().label("now"))
    .where(among(tenants.c.id, "tenants"))
    .order_by(tenants.c.id)
    .with_for_update(key_share=True)
)
#: By tunes_named. Every tenant with every name: a few rows too many, where two tenants use one name.
_NAMED = select(tunes).where(
    among(tunes.c.tenant_id, "tenants"), among(tunes.c.name, "names"), tunes.c.deleted_at.is_(None)
)
#: By tunes_requested. Deleted ones too: one request_id, one tune.
_REQUESTED = select(tunes).where(
    among(tunes.c.tenant_id, "tenants"), among(tunes.c.request_id, "requests"), tunes.c.request_id.is_not(None)
)
#: By the primary key.
_FILES_BY_ID = select(assets.c.id, assets.c.tenant_id, assets.c.asset_type).where(
    among(assets.c.id, "files"), assets.c.deleted_at.is_(None)
)


async def _write(transaction: Transaction, desk: _Desk) -> None:
    accepted = desk.accepted
    if not accepted:
        return
    await transaction.execute(_INSERT_TUNES, desk.rows)
    await transaction.execute(_INSERT_EVENTS, [_first_event(tune) for tune in accepted])
    by_tenant = Counter(tune.tenant_id for tune in accepted)
    await transaction.execute(_COUNT, [{"tenant": id, "more": more} for id, more in sorted(by_tenant.items())])
    by_queue = Counter((tune.tenant_id, tune.engine, tune.memory_class) for tune in accepted)
    keys = ("tenant_id", "engine", "memory_class")
    await transaction.execute(
        _COUNT_QUEUES,
        [dict(zip(keys, queue, strict=True)) | {"queued": more} for queue, more in sorted(by_queue.items())],
    )
    for tune in accepted:
        transaction.wake("tune", tune.id)
    for engine in {tune.engine for tune in accepted}:
        transaction.wake("queue", engine)


#: A tune as its defaults make it.
_BLANK = {name: field.get_default() for name, field in Tune.model_fields.items() if not field.is_required()}
_INSERT_TUNES = insert(tunes)
_INSERT_EVENTS = insert(events).values(seq=1, epoch=0, kind="status_changed")
_COUNT = update(tenants).where(tenants.c.id == bindparam("tenant")).values(queued=tenants.c.queued + bindparam("more"))
#: Under the tenant's lock. ON CONFLICT is in both databases, and in SQLAlchemy in their dialects only.
_COUNT_QUEUES = text(
    "INSERT INTO queues (tenant_id, engine, memory_class, queued) VALUES (:tenant_id, :engine, :memory_class, :queued)"
    " ON CONFLICT (tenant_id, engine, memory_class) DO UPDATE SET queued = queues.queued + excluded.queued"
)


def _first_event(tune: Tune) -> dict[str, Any]:
    body = {"status": tune.state.public, "details": "", "reason": "QUEUED", "attempt": 0}
    return {"tune_id": tune.id, "created_at": tune.created_at, "body": body}
