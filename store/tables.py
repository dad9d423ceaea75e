"""The tables: what is remembered, with the checks and indexes that the database holds. Read by every module of the
store and, as rows, by the gateway; knows no queries.

Every time is an aware UTC datetime by the database's clock. Strings with a closed list of values are lower case, as
the JSON profile has them. Migrations (store/migrations) make these tables; a test holds the two together.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeVar, cast

from sqlalchemy import BigInteger, CheckConstraint, Column, Enum, Index, Table, literal_column, text
from sqlalchemy.orm import configure_mappers
from sqlalchemy.orm.instrumentation import manager_of_class
from sqlmodel import Field, SQLModel

from store.dialect import Document, Time
from store.states import LEASED, TuneState, listed

ASSET_TYPES = ("file", "checkpoint", "lora", "textual_inversion", "vae", "latent")
STATE = Enum(TuneState, native_enum=False, length=16, values_callable=lambda states: [state.value for state in states])
ASSET_STATUSES = ("ready_to_upload", "uploaded", "ready", "deleted", "rejected", "error")


def _json(name: str, default: str | None = None) -> Any:  # noqa: ANN401  # as SQLModel's Field
    """A JSON column; with a default it is never null."""
    server_default = None if default is None else text(f"'{default}'")
    return Field(sa_column=Column(name, Document(), nullable=default is None, server_default=server_default))


def _time(*, nullable: bool = True) -> Any:  # noqa: ANN401  # as SQLModel's Field
    return Field(default=None, sa_type=cast("Any", Time()), nullable=nullable)


class Tenant(SQLModel, table=True):
    """Who owns tunes and assets, and the counters that every move of a tune keeps true.

    The row is the lock of the tenant's queue: who moves a tune into, within or out of QUEUED, ASSIGNED and RUNNING
    updates this row in the same transaction, and a claim takes it first (see leases.py).
    """

    __tablename__ = "tenants"
    __table_args__ = (
        CheckConstraint("queued >= 0 AND running >= 0", name="tenants_counters"),
        CheckConstraint("weight > 0 AND queue_limit >= 0 AND running_limit >= 0", name="tenants_limits"),
        CheckConstraint("request_rate > 0", name="tenants_request_rate"),
        # A caller names a public asset as "owner:name".
        Index("tenants_name", "name", unique=True),
    )

    id: str = Field(primary_key=True)
    """A UUID."""
    name: str
    """Unique; the owner in "owner:name"."""
    is_operator: bool = False
    """May publish assets to all."""
    weight: float = 1.0
    """Share of the trainers against other tenants': neediest is who has the fewest running over its weight."""
    queue_limit: int = 10_000
    """Tunes that may be QUEUED at once."""
    running_limit: int = 1_000
    """Tunes that may be ASSIGNED or RUNNING at once."""
    request_rate: float | None = None
    """Requests a second at each gateway; null: what the gateway grants all."""
    queued: int = Field(default=0, sa_column_kwargs={"server_default": text("0")})
    """Tunes that are QUEUED."""
    running: int = Field(default=0, sa_column_kwargs={"server_default": text("0")})
    """Tunes that are ASSIGNED or RUNNING, with a lease that lasts or has ended."""
    served_at: datetime | None = _time()
    """When a claim last gave one of its tunes away: among equally needy tenants the longest unserved goes first."""
    created_at: datetime = _time(nullable=False)
    """When it was made."""


class Queue(SQLModel, table=True):
    """How many tunes of a tenant wait for one kind of trainer, so that a claim finds a tenant without reading tunes."""

    __tablename__ = "queues"
    __table_args__ = (CheckConstraint("queued >= 0", name="queues_counter"),)

    tenant_id: str = Field(primary_key=True, foreign_key="tenants.id")
    """Whose."""
    engine: str = Field(primary_key=True)
    """The engine that they need."""
    memory_class: int = Field(primary_key=True)
    """GiB of device memory that they need; 0: any device will do."""
    queued: int = Field(default=0, sa_column_kwargs={"server_default": text("0")})
    """Tunes that are QUEUED. Written only under the lock of the tenant's row."""


class ApiKey(SQLModel, table=True):
    """A caller's key. Only the hash of the secret is kept."""

    __tablename__ = "api_keys"
    __table_args__ = (
        Index("api_keys_hash", "hash", unique=True),
    )  # authenticate() looks up by it, and by nothing else

    id: str = Field(primary_key=True)
    """"key_" and a TypeID suffix."""
    tenant_id: str = Field(foreign_key="tenants.id", index=True)
    """Whose."""
    name: str
    """For people."""
    hash: str
    """SHA-256 of the secret, hexadecimal. The secret has 256 random bits, so a slow hash would add nothing."""
    scopes: list[str] = _json("scopes", "[]")
    """What it may do; "*" is everything."""
    created_at: datetime = _time(nullable=False)
    """When it was made."""
    expires_at: datetime | None = _time()
    """From then on it is not accepted. Null: never."""
    revoked_at: datetime | None = _time()
    """From then on it is not accepted. Null: it is."""


class TrainerToken(SQLModel, table=True):
    """A trainer's join token. Only the hash of the secret is kept. A trainer may have several, so that they can be
    changed.
    """

    __tablename__ = "trainer_tokens"

    hash: str = Field(primary_key=True)
    """SHA-256 of the secret, hexadecimal."""
    trainer_id: str = Field(index=True)
    """The trainer that it names."""
    created_at: datetime = _time(nullable=False)
    """When it was made."""
    revoked_at: datetime | None = _time()
    """From then on it is not accepted. Null: it is."""


class Asset(SQLModel, table=True):
    """A stored picture, checkpoint or LoRA. Never erased: a deleted one keeps its row, for tunes that read it."""

    __tablename__ = "assets"
    __table_args__ = (
        CheckConstraint(f"asset_type IN {ASSET_TYPES}", name="assets_type"),
        CheckConstraint(f"status IN {ASSET_STATUSES}", name="assets_status"),
        CheckConstraint("(status = 'deleted') = (deleted_at IS NOT NULL)", name="assets_deleted"),
        CheckConstraint("size_bytes >= 0", name="assets_size"),
        # A tenant's list, newest first.
        Index(
            "assets_listed",
            "tenant_id",
            text("created_at DESC"),
            text("id DESC"),
            postgresql_where=text("deleted_at IS NULL"),
            sqlite_where=text("deleted_at IS NULL"),
        ),
        # Look-up by name: the newest living one.
        Index(
            "assets_named",
            "tenant_id",
            "name",
            text("created_at DESC"),
            postgresql_where=text("deleted_at IS NULL"),
            sqlite_where=text("deleted_at IS NULL"),
        ),
        # Public ones, in every tenant's look-ups; there are few.
        Index(
            "assets_public",
            "name",
            postgresql_where=text("is_public AND deleted_at IS NULL"),
            sqlite_where=text("is_public AND deleted_at IS NULL"),
        ),
        # A trainer's warm checkpoints, which it knows by their digest.
        Index(
            "assets_checkpoints",
            "sha256",
            postgresql_where=text("asset_type = 'checkpoint'"),
            sqlite_where=text("asset_type = 'checkpoint'"),
        ),
        # Deleted ones that still have their bytes (retention).
        Index(
            "assets_unreleased",
            "deleted_at",
            postgresql_where=text("deleted_at IS NOT NULL AND object_key IS NOT NULL"),
            sqlite_where=text("deleted_at IS NOT NULL AND object_key IS NOT NULL"),
        ),
        # One LoRA a tune: the second line of defence behind the fence.
        Index(
            "assets_of_tune",
            "tune_id",
            "role",
            unique=True,
            postgresql_where=text("role IS NOT NULL"),
            sqlite_where=text("role IS NOT NULL"),
        ),
    )

    id: str = Field(primary_key=True)
    """"asset_" and a TypeID suffix."""
    tenant_id: str = Field(foreign_key="tenants.id")
    """Whose."""
    asset_type: str
    """One of ASSET_TYPES."""
    name: str
    """Need not be unique."""
    description: str = ""
    """For people."""
    status: str
    """One of ASSET_STATUSES."""
    status_details: str = ""
    """A sentence for people."""
    status_info: dict[str, Any] | None = _json("status_info")
    """The same for programs, such as {"reason": "TRUNCATED"}."""
    data: dict[str, Any] = _json("data", "{}")
    """The fields of its AssetData arm in the JSON profile's names."""
    engine: str | None = None
    """data.engine, for filters."""
    data_type: str | None = None
    """data.data_type, for filters."""
    file_format: str | None = None
    """data.file_format, for filters."""
    size_bytes: int = Field(
        default=0, sa_type=cast("Any", BigInteger()), sa_column_kwargs={"server_default": text("0")}
    )
    """0 before the upload is complete."""
    sha256: str | None = None
    """Of its bytes, hexadecimal. Null before the upload is complete, and where the bytes are not ours."""
    object_key: str | None = None
    """Where its bytes lie, for good. Null before the upload is complete, where the bytes are not ours, and again where
    they were given up long after the asset was deleted (retention.py).
    """
    is_public: bool = False
    """Every tenant may use it."""
    skip_validation: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    """Whoever made it wants its upload taken unjudged, unless its completion says otherwise."""
    source: dict[str, Any] | None = _json("source")
    """{"builtin": name} or {"hugging_face": repository, "commit": hash}; null: the object."""
    file_structure: str | None = None
    """"single_file", "multiple_files" or "unknown"; null: not known."""
    hf_repo: str | None = None
    """The Hugging Face repository that it was made from."""
    url: str | None = None
    """The URL that it was made from."""
    tune_id: str | None = None
    """The tune that made it. No foreign key: tunes refer to assets, and a circle of them cannot be made on SQLite."""
    role: str | None = None
    """What it is to that tune: "lora", unique a tune; null for samples."""
    created_at: datetime = _time(nullable=False)
    """When it was made."""
    deleted_at: datetime | None = _time()
    """When it was deleted."""


class Fetch(SQLModel, table=True):
    """An asset whose bytes a gateway is to fetch. There is a row for as long as they may still come; it goes with the
    asset's verdict, its error or its deletion, and with it the URL, which may be as good as a key.
    """

    __tablename__ = "fetches"
    __table_args__ = (
        CheckConstraint("(url IS NULL) <> (hf_repo IS NULL)", name="fetches_source"),
        CheckConstraint("tries >= 0", name="fetches_tries"),
        # What is due (claim).
        Index("fetches_due", "due_at"),
        # How many a tenant has (create).
        Index("fetches_of_tenant", "tenant_id"),
        # Those whose token a gateway speaks for (keep).
        Index(
            "fetches_token",
            "token_ref",
            postgresql_where=text("token_ref IS NOT NULL"),
            sqlite_where=text("token_ref IS NOT NULL"),
        ),
    )

    asset_id: str = Field(primary_key=True, foreign_key="assets.id")
    """Which asset."""
    tenant_id: str = Field(foreign_key="tenants.id")
    """Whose."""
    url: str | None = None
    """Where the bytes are, whole. Null: in hf_repo."""
    hf_repo: str | None = None
    """The Hugging Face repository that they are in. Null: at url."""
    skip_validation: bool = False
    """As in the request."""
    token_ref: str | None = None
    """Names the token that the fetch wants; the one gateway that was given it knows it by this. Null: it wants none."""
    token_until: datetime | None = _time()
    """So long that gateway speaks for the token; it moves this on for as long as it lives. Null: there is no token."""
    tries: int = Field(default=0, sa_column_kwargs={"server_default": text("0")})
    """How often it was begun. The fence: who holds an older number has lost it."""
    due_at: datetime = _time(nullable=False)
    """From then on any gateway may begin it: while one is at it, the end of its lease."""


_LEASED = listed(LEASED)


class Tune(SQLModel, table=True):
    """One request for a LoRA and all that became of it: the truth of which the stream carries wishes and reports."""

    __tablename__ = "tunes"
    __table_args__ = (
        CheckConstraint(f"state IN ({listed(TuneState)})", name="tunes_state"),
        CheckConstraint(
            f"(state IN ({_LEASED})) = (lease_expires_at IS NOT NULL)"
            f" AND (state NOT IN ({_LEASED}) OR (lease_trainer_id IS NOT NULL AND lease_epoch >= 1))",
            name="tunes_lease",
        ),
        CheckConstraint("(state = 'succeeded') = (succeeded_at IS NOT NULL)", name="tunes_succeeded"),
        CheckConstraint("(snapshot_key IS NULL) = (snapshot_step IS NULL)", name="tunes_snapshot"),
        CheckConstraint("(resolved_recipe IS NULL) = (resolved_recipe_sha256 IS NULL)", name="tunes_recipe"),
        CheckConstraint("steps >= 1 AND step >= 0 AND attempts >= 0 AND crashes >= 0", name="tunes_counts"),
        # Names are unique among a tenant's living tunes; submit() finds the one that has the name.
        Index(
            "tunes_named",
            "tenant_id",
            "name",
            unique=True,
            postgresql_where=text("deleted_at IS NULL"),
            sqlite_where=text("deleted_at IS NULL"),
        ),
        # One request_id, one tune, also after its deletion.
        Index(
            "tunes_requested",
            "tenant_id",
            "request_id",
            unique=True,
            postgresql_where=text("request_id IS NOT NULL"),
            sqlite_where=text("request_id IS NOT NULL"),
        ),
        # A claim's head of one queue, and a tune's place in its tenant's queue.
        Index(
            "tunes_queue",
            "tenant_id",
            "engine",
            "memory_class",
            text("priority DESC"),
            "created_at",
            "id",
            postgresql_where=text("state = 'queued'"),
            sqlite_where=text("state = 'queued'"),
        ),
        # Leases that have ended (claim, reap); as long as what runs now, however many tunes there were.
        Index(
            "tunes_leases",
            "lease_expires_at",
            postgresql_where=text("lease_expires_at IS NOT NULL"),
            sqlite_where=text("lease_expires_at IS NOT NULL"),
        ),
        # What one trainer holds (Hello).
        Index(
            "tunes_held",
            "lease_trainer_id",
            postgresql_where=text("lease_expires_at IS NOT NULL"),
            sqlite_where=text("lease_expires_at IS NOT NULL"),
        ),
        # Ended ones whose step metrics stand as they came (retention).
        Index(
            "tunes_unthinned",
            "ended_at",
            postgresql_where=text("ended_at IS NOT NULL AND thinned_at IS NULL"),
            sqlite_where=text("ended_at IS NOT NULL AND thinned_at IS NULL"),
        ),
        # A tenant's list, newest first.
        Index(
            "tunes_listed",
            "tenant_id",
            text("created_at DESC"),
            text("id DESC"),
            postgresql_where=text("deleted_at IS NULL"),
            sqlite_where=text("deleted_at IS NULL"),
        ),
    )

    id: str = Field(primary_key=True)
    """"tune_" and a TypeID suffix."""
    tenant_id: str = Field(foreign_key="tenants.id")
    """Whose."""
    name: str
    """As the caller gave it."""
    description: str = ""
    """As the caller gave it."""
    engine: str
    """The base checkpoint's."""
    memory_class: int = 0
    """GiB of device memory that it is estimated to need; 0: any device will do."""
    checkpoint_id: str = Field(foreign_key="assets.id")
    """The base checkpoint."""
    checkpoint_ref: str
    """The same as the caller named it."""
    checkpoint_name: str
    """Its name when the tune was accepted."""
    details: dict[str, Any] = _json("details", "{}")
    """LoraTune as requested, in the JSON profile's names; with `files`, the only place where they stand, in their
    order.
    """
    trigger_words: list[str] = _json("trigger_words", "[]")
    """For filters."""
    steps: int
    """Optimizer steps wanted."""
    continue_on_rejection: bool = False
    """Whether it goes on without refused files, rather than fail."""
    metadata_: dict[str, str] = _json("metadata", "{}")
    """The caller's own pairs."""
    priority: int = 0
    """Among the tenant's own tunes the higher goes first."""
    request_id: str | None = None
    """The caller's, unique a tenant."""
    request_hash: str
    """Of the request's body: tells a retry from another request."""
    traceparent: str | None = None
    """W3C trace context of the request that made it."""

    state: TuneState = Field(sa_type=cast("Any", STATE))
    """Where it stands. Moves as states.MOVES says."""
    status_details: str = Field(default="", sa_column_kwargs={"server_default": text("''")})
    """A sentence for people: why it failed, which files were left out."""
    output_lora_ids: list[str] = _json("output_lora_ids", "[]")
    """Its LoRA assets."""
    available: int | None = None
    """Pictures that are trained on. Null before any attempt."""
    rejected: list[str] = _json("rejected", "[]")
    """Ids of files that the gateway or the trainer refused."""
    unready: list[str] = _json("unready", "[]")
    """Ids of files that had not been uploaded when it started."""

    phase: str | None = None
    """What the trainer does now, as TunePhase's lower-case names. Null unless RUNNING."""
    step: int = Field(default=0, sa_column_kwargs={"server_default": text("0")})
    """Optimizer steps done, as last heard."""
    loss: float | None = None
    """Of the newest step."""
    steps_per_second: float | None = None
    """Over the last steps."""

    lease_epoch: int = Field(
        default=0, sa_type=cast("Any", BigInteger()), sa_column_kwargs={"server_default": text("0")}
    )
    """Grows by one with every claim, and is never reset: the fence."""
    lease_trainer_id: str | None = None
    """Who holds it, or held it last: a report that is sent again after the end is still known."""
    lease_expires_at: datetime | None = _time()
    """From then on it is claimable. Null unless ASSIGNED or RUNNING."""
    lease_claimed_at: datetime | None = _time()
    """When the newest lease began."""
    reported_seq: int = Field(
        default=0, sa_type=cast("Any", BigInteger()), sa_column_kwargs={"server_default": text("0")}
    )
    """The newest report_seq that was recorded under this epoch."""
    attempts: int = Field(default=0, sa_column_kwargs={"server_default": text("0")})
    """Attempts that were accepted by a trainer and not given back. For people."""
    crashes: int = Field(default=0, sa_column_kwargs={"server_default": text("0")})
    """Attempts that ended badly since the newest snapshot: the poison limit's."""
    cancel_requested_at: datetime | None = _time()
    """The caller wants it to end. It will never run again."""

    resolved_recipe: str | None = None
    """What the first attempt fixed: canonical JSON, byte for byte as it was reported, for its hash is over these
    bytes.
    """
    resolved_recipe_sha256: str | None = None
    """Of the same, hexadecimal."""
    snapshot_key: str | None = None
    """Object to go on from."""
    snapshot_step: int | None = None
    """The step after which it was taken."""
    snapshot_sha256: str | None = None
    """Of its bytes, hexadecimal."""
    snapshot_size_bytes: int | None = Field(default=None, sa_type=cast("Any", BigInteger()))
    """Its size."""
    earlier_snapshot: dict[str, Any] | None = _json("earlier_snapshot")
    """{"object_key", "step", "sha256", "size_bytes"} of the one before it, should the newest prove damaged."""
    final_loss: float | None = None
    """Mean loss of the last tenth of the steps."""

    event_seq: int = Field(default=0, sa_column_kwargs={"server_default": text("0")})
    """The newest event's seq. Grows under this row's lock, so that no seq is skipped or given twice."""
    created_at: datetime = _time(nullable=False)
    """When it was accepted."""
    updated_at: datetime = _time(nullable=False)
    """When its status, its result or its wishes last changed; not by progress."""
    succeeded_at: datetime | None = _time()
    """When the LoRA was committed."""
    ended_at: datetime | None = _time()
    """When it came to a final state."""
    thinned_at: datetime | None = _time()
    """When its step metrics were thinned. Null: they stand as they came."""
    deleted_at: datetime | None = _time()
    """When it was deleted."""

    @property
    def files(self) -> list[tuple[str, str | None]]:
        """(file asset id, caption) in the order in which they are counted."""
        return [(file["file_id"], file.get("caption")) for file in self.details["files"]]


class Event(SQLModel, table=True):
    """One entry of a tune's log."""

    __tablename__ = "events"

    tune_id: str = Field(primary_key=True, foreign_key="tunes.id")
    """Whose."""
    seq: int = Field(primary_key=True)
    """Place in the log, 1 and up, without gaps."""
    created_at: datetime = _time(nullable=False)
    """When it was written."""
    epoch: int = Field(default=0, sa_type=cast("Any", BigInteger()))
    """The tune's lease epoch when it was written; 0 before the first claim."""
    kind: str
    """Name of its TuneEventBody arm."""
    body: dict[str, Any] = _json("body", "{}")
    """That arm in the JSON profile's names."""


class Trainer(SQLModel, table=True):
    """A trainer that has said Hello, as last heard."""

    __tablename__ = "trainers"

    trainer_id: str = Field(primary_key=True)
    """Stable over restarts; its token's."""
    boot_id: str
    """Of its process."""
    session_id: str
    """Of its stream. The newest Hello's; who finds another one here has been evicted."""
    gateway_id: str
    """Where the stream ends."""
    version: str = ""
    """Of its distribution."""
    engines: list[str] = _json("engines", "[]")
    """That it can run."""
    slots: int = 1
    """Tunes at the same time."""
    free_slots: int = 0
    """Of these, without an attempt."""
    device_name: str = ""
    """The GPU's name, or "cpu"."""
    device_memory_bytes: int = Field(default=0, sa_type=cast("Any", BigInteger()))
    """That a tune may use."""
    connected_at: datetime = _time(nullable=False)
    """When this stream said Hello."""
    seen_at: datetime = _time(nullable=False)
    """Its last Hello or Heartbeat."""
    disconnected_at: datetime | None = _time()
    """When the stream ended. Null while it lasts."""
    drain_reason: str | None = None
    """Why the operator wants it empty; stays over its restarts. Null: it is to work."""


class Liveness(SQLModel, table=True):
    """One row: whether the service itself has been alive, so that an outage of ours ends nobody's lease."""

    __tablename__ = "liveness"
    __table_args__ = (CheckConstraint("id = 1", name="liveness_single"),)

    id: int = Field(primary_key=True, default=1)
    """Always 1."""
    seen_at: datetime = _time(nullable=False)
    """When any gateway last reaped."""
    grace_until: datetime = _time(nullable=False)
    """No lease counts as ended before then."""


Row = TypeVar("Row", bound=SQLModel)


def record(model: type[Row], row: Any) -> Row:  # noqa: ANN401  # a row, or a mapping of columns
    """A row of a Core statement as its model: no session has it, and nothing is loaded later."""
    values = dict(getattr(row, "_mapping", row))
    if "metadata" in values:
        values["metadata_"] = values.pop("metadata")  # the name is SQLAlchemy's own on a model
    # As the ORM's own loader does it. The constructor would take a quarter of a millisecond for a tune's 50 columns.
    made = manager_of_class(model).new_instance()
    made.__dict__.update(values)
    return made


# record() goes past the constructor, which would do this when it is first called.
configure_mappers()


def table(model: type[SQLModel]) -> Table:
    """The Core table of a model, for statements that are written out."""
    return cast("Table", model.__table__)  # type: ignore[attr-defined]  # SQLModel adds it, and does not declare it


tenants = table(Tenant)
queues = table(Queue)
api_keys = table(ApiKey)
trainer_tokens = table(TrainerToken)
assets = table(Asset)
fetches = table(Fetch)
tunes = table(Tune)
events = table(Event)
trainers = table(Trainer)
liveness = table(Liveness)

#: Written out, not a parameter: only so do both databases see that the partial index tunes_queue will do.
IS_QUEUED = tunes.c.state == literal_column("'queued'")
