"""What retention goes by: which tunes' step metrics are thinned, and which deleted assets still have bytes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from store.dialect import Time

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

UNTHINNED = sa.text("ended_at IS NOT NULL AND thinned_at IS NULL")
UNRELEASED = sa.text("deleted_at IS NOT NULL AND object_key IS NOT NULL")


def upgrade() -> None:
    """Adds it."""
    op.add_column("tunes", sa.Column("thinned_at", Time(), nullable=True))
    for name, table, column, where in (
        ("tunes_unthinned", "tunes", "ended_at", UNTHINNED),
        ("assets_unreleased", "assets", "deleted_at", UNRELEASED),
    ):
        op.create_index(name, table, [column], unique=False, postgresql_where=where, sqlite_where=where)


def downgrade() -> None:
    """Takes it away."""
    op.drop_index("assets_unreleased", table_name="assets")
    op.drop_index("tunes_unthinned", table_name="tunes")
    op.drop_column("tunes", "thinned_at")
