"""For how long a gateway speaks for the token of a fetch."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from store.dialect import Time

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds it."""
    op.add_column("fetches", sa.Column("token_until", Time(), nullable=True))
    given = sa.text("token_ref IS NOT NULL")
    op.create_index("fetches_token", "fetches", ["token_ref"], postgresql_where=given, sqlite_where=given)


def downgrade() -> None:
    """Takes it away."""
    op.drop_index("fetches_token", "fetches")
    op.drop_column("fetches", "token_until")
