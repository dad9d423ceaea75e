"""How many requests a second the operator grants a tenant."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds it."""
    # In SQL: SQLite adds a constraint to a table that is there only together with a column.
    op.execute(
        "ALTER TABLE tenants ADD COLUMN request_rate FLOAT CONSTRAINT tenants_request_rate CHECK (request_rate > 0)"
    )


def downgrade() -> None:
    """Takes it away."""
    op.drop_column("tenants", "request_rate")
