"""Webhooks: endpoints with their secrets, the outbox, and how each try went."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from store.dialect import Document, Time

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes their tables."""
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("event_types", Document(), nullable=False),
        sa.Column("failing_since", Time(), nullable=True),
        sa.Column("disabled_at", Time(), nullable=True),
        sa.Column("disabled_reason", sa.String(), nullable=True),
        sa.Column("created_at", Time(), nullable=False),
        sa.CheckConstraint("(disabled_at IS NULL) = (disabled_reason IS NULL)", name="webhook_endpoints_disabled"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("webhook_endpoints_of_tenant", "webhook_endpoints", ["tenant_id"], unique=False)
    op.create_table(
        "webhook_secrets",
        sa.Column("endpoint_id", sa.String(), nullable=False),
        sa.Column("secret", sa.String(), nullable=False),
        sa.Column("created_at", Time(), nullable=False),
        sa.Column("expires_at", Time(), nullable=True),
        sa.ForeignKeyConstraint(
            ["endpoint_id"], ["webhook_endpoints.id"], ondelete="CASCADE", name="webhook_secrets_of"
        ),
        sa.PrimaryKeyConstraint("endpoint_id", "secret"),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("message_id", sa.String(), nullable=False),
        sa.Column("endpoint_id", sa.String(), nullable=False),
        sa.Column("tune_id", sa.String(), nullable=False),
        sa.Column("event_type", sa.String(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("due_at", Time(), nullable=True),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("created_at", Time(), nullable=False),
        sa.Column("ended_at", Time(), nullable=True),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'given_up')", name="webhook_deliveries_state"),
        sa.CheckConstraint(
            "(state = 'pending') = (due_at IS NOT NULL) AND (state = 'pending') = (ended_at IS NULL)",
            name="webhook_deliveries_pending",
        ),
        sa.ForeignKeyConstraint(
            ["endpoint_id"], ["webhook_endpoints.id"], ondelete="CASCADE", name="webhook_deliveries_of"
        ),
        sa.ForeignKeyConstraint(["tune_id"], ["tunes.id"]),
        sa.PrimaryKeyConstraint("message_id", "endpoint_id"),
    )
    due, ended = sa.text("due_at IS NOT NULL"), sa.text("ended_at IS NOT NULL")
    op.create_index(
        "webhook_deliveries_due",
        "webhook_deliveries",
        ["endpoint_id", "due_at"],
        unique=False,
        postgresql_where=due,
        sqlite_where=due,
    )
    op.create_index(
        "webhook_deliveries_ended",
        "webhook_deliveries",
        ["ended_at"],
        unique=False,
        postgresql_where=ended,
        sqlite_where=ended,
    )
    op.create_index(
        "webhook_deliveries_newest",
        "webhook_deliveries",
        [sa.text("created_at DESC"), sa.text("message_id DESC")],
        unique=False,
    )
    op.create_table(
        "webhook_attempts",
        sa.Column("message_id", sa.String(), nullable=False),
        sa.Column("endpoint_id", sa.String(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("ended_at", Time(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["message_id", "endpoint_id"],
            ["webhook_deliveries.message_id", "webhook_deliveries.endpoint_id"],
            ondelete="CASCADE",
            name="webhook_attempts_of",
        ),
        sa.PrimaryKeyConstraint("message_id", "endpoint_id", "epoch"),
    )


def downgrade() -> None:
    """Drops them."""
    for name in ("webhook_attempts", "webhook_deliveries", "webhook_secrets", "webhook_endpoints"):
        op.drop_table(name)
