"""An index of an endpoint's messages: for its log, and so that its removal does not read all others'."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds it."""
    op.create_index("webhook_deliveries_of_endpoint", "webhook_deliveries", ["endpoint_id", "created_at"], unique=False)


def downgrade() -> None:
    """Takes it away."""
    op.drop_index("webhook_deliveries_of_endpoint", "webhook_deliveries")
