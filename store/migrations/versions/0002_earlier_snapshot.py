"""The snapshot before the newest one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from store.dialect import Document

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds it."""
    op.add_column("tunes", sa.Column("earlier_snapshot", Document(), nullable=True))


def downgrade() -> None:
    """Takes it away."""
    op.drop_column("tunes", "earlier_snapshot")
