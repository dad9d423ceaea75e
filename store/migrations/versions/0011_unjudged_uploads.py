"""Whether an asset's upload is to be taken unjudged."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds it."""
    op.add_column("assets", sa.Column("skip_validation", sa.Boolean(), server_default=sa.text("false"), nullable=False))


def downgrade() -> None:
    """Takes it away."""
    op.drop_column("assets", "skip_validation")
