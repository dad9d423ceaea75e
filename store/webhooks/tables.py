"""The tables of webhooks: who wants to be told, the outbox of what is to be told, and how that went. Read by its
neighbours, and as rows by the gateway; knows no queries. All else of store/tables.py holds here too.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

from sqlalchemy import CheckConstraint, Column, ForeignKeyConstraint, Index, Text, text
from sqlalchemy.orm import configure_mappers
from sqlmodel import Field, SQLModel

from store.dialect import Document, Time
from store.tables import table

#: What an endpoint can ask for: each move of a tune into the state of that public name.
EVENT_TYPES = ("tune.running", "tune.succeeded", "tune.failed", "tune.cancelled")
DELIVERY_STATES = ("pending", "delivered", "given_up")


def _time(*, nullable: bool = True) -> Any:  # noqa: ANN401  # as SQLModel's Field
    return Field(default=None, sa_type=cast("Any", Time()), nullable=nullable)


class WebhookEndpoint(SQLModel, table=True):
    """A tenant's address that wants to be told."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (
        CheckConstraint("(disabled_at IS NULL) = (disabled_reason IS NULL)", name="webhook_endpoints_disabled"),
        # Each move of a tune asks for its tenant's.
        Index("webhook_endpoints_of_tenant", "tenant_id"),
    )

    id: str = Field(primary_key=True)
    """"hook_" and a TypeID suffix."""
    tenant_id: str = Field(foreign_key="tenants.id")
    """Whose."""
    url: str
    """http or https, without a password."""
    description: str = ""
    """For people."""
    event_types: list[str] = Field(sa_column=Column("event_types", Document(), nullable=False))
    """Of EVENT_TYPES, those that it is told of."""
    failing_since: datetime | None = _time()
    """When the first try failed since the last one that went well. Null: none has."""
    disabled_at: datetime | None = _time()
    """From then on it is told nothing. Null: it is enabled."""
    disabled_reason: str | None = None
    """Why, a sentence for people."""
    created_at: datetime = _time(nullable=False)
    """When it was added."""


class WebhookSecret(SQLModel, table=True):
    """What an endpoint's webhooks are signed with; after a rotation, two or more for a time. Kept as it is: a hash
    would sign nothing.
    """

    __tablename__ = "webhook_secrets"
    __table_args__ = (
        ForeignKeyConstraint(["endpoint_id"], ["webhook_endpoints.id"], ondelete="CASCADE", name="webhook_secrets_of"),
    )

    endpoint_id: str = Field(primary_key=True)
    """Whose."""
    secret: str = Field(primary_key=True)
    """"whsec_" and base64."""
    created_at: datetime = _time(nullable=False)
    """When it was made; the newest one signs first."""
    expires_at: datetime | None = _time()
    """From then on it signs nothing. Null: it is the newest."""


class WebhookDelivery(SQLModel, table=True):
    """One message for one endpoint: the outbox. Written in the transaction of the move that it tells of."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        ForeignKeyConstraint(
            ["endpoint_id"], ["webhook_endpoints.id"], ondelete="CASCADE", name="webhook_deliveries_of"
        ),
        CheckConstraint(f"state IN {DELIVERY_STATES}", name="webhook_deliveries_state"),
        CheckConstraint(
            "(state = 'pending') = (due_at IS NOT NULL) AND (state = 'pending') = (ended_at IS NULL)",
            name="webhook_deliveries_pending",
        ),
        # An endpoint's next ones (claim), and which endpoints have some.
        Index(
            "webhook_deliveries_due",
            "endpoint_id",
            "due_at",
            postgresql_where=text("due_at IS NOT NULL"),
            sqlite_where=text("due_at IS NOT NULL"),
        ),
        # Old ones (retention).
        Index(
            "webhook_deliveries_ended",
            "ended_at",
            postgresql_where=text("ended_at IS NOT NULL"),
            sqlite_where=text("ended_at IS NOT NULL"),
        ),
        # An endpoint's newest ones (its log), and all that it has (its removal; the cascade looks for them too).
        Index("webhook_deliveries_of_endpoint", "endpoint_id", "created_at"),
        # The newest ones (the operator's log).
        Index("webhook_deliveries_newest", text("created_at DESC"), text("message_id DESC")),
    )

    message_id: str = Field(primary_key=True)
    """"msg_" and a TypeID suffix: the header webhook-id, the same at each try and at each endpoint."""
    endpoint_id: str = Field(primary_key=True)
    """Where to."""
    tune_id: str = Field(foreign_key="tunes.id")
    """What it tells of."""
    event_type: str
    """One of EVENT_TYPES."""
    body: str = Field(sa_type=Text)
    """JSON, byte for byte as it is sent and signed."""
    state: str = "pending"
    """One of DELIVERY_STATES."""
    due_at: datetime | None = _time()
    """From then on it may be claimed: the next try's time, or when the lease of the try under way ends. Null unless
    pending.
    """
    epoch: int = 0
    """Grows by one with every claim and is never reset: the fence of who records a try."""
    tries: int = 0
    """Claims since it was written or last sent again by hand: where it stands in the schedule."""
    created_at: datetime = _time(nullable=False)
    """When it was written."""
    ended_at: datetime | None = _time()
    """When it was delivered or given up."""


class WebhookAttempt(SQLModel, table=True):
    """One try, as it went. One whose gateway died over it has no row."""

    __tablename__ = "webhook_attempts"
    __table_args__ = (
        ForeignKeyConstraint(
            ["message_id", "endpoint_id"],
            ["webhook_deliveries.message_id", "webhook_deliveries.endpoint_id"],
            ondelete="CASCADE",
            name="webhook_attempts_of",
        ),
    )

    message_id: str = Field(primary_key=True)
    """What was sent."""
    endpoint_id: str = Field(primary_key=True)
    """Where to."""
    epoch: int = Field(primary_key=True)
    """The claim's."""
    ended_at: datetime = _time(nullable=False)
    """When the answer came, or was given up."""
    seconds: float
    """How long it took."""
    status: int | None = None
    """The answer's HTTP status. Null: there was none."""
    error: str | None = None
    """Why there was none, a word such as TIMEOUT. Null: there was one."""


webhook_endpoints = table(WebhookEndpoint)
webhook_secrets = table(WebhookSecret)
webhook_deliveries = table(WebhookDelivery)
webhook_attempts = table(WebhookAttempt)

configure_mappers()  # as in store/tables.py
