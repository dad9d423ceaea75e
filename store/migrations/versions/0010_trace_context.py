"""The trace context of the request that made a tune."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds it; tunes of before have none."""
    op.add_column("tunes", sa.Column("traceparent", sa.String(), nullable=True))


def downgrade() -> None:
    """Takes it away."""
    op.drop_column("tunes", "traceparent")
