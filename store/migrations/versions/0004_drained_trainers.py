"""Why the operator wants a trainer empty."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds it."""
    op.add_column("trainers", sa.Column("drain_reason", sa.String(), nullable=True))


def downgrade() -> None:
    """Takes it away."""
    op.drop_column("trainers", "drain_reason")
