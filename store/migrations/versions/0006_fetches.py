"""Assets whose bytes a gateway is to fetch."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from store.dialect import Time

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds them."""
    op.create_table(
        "fetches",
        sa.Column("asset_id", sa.String(), sa.ForeignKey("assets.id"), primary_key=True),
        sa.Column("tenant_id", sa.String(), sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("url", sa.String(), nullable=True),
        sa.Column("hf_repo", sa.String(), nullable=True),
        sa.Column("skip_validation", sa.Boolean(), nullable=False),
        sa.Column("token_ref", sa.String(), nullable=True),
        sa.Column("tries", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("due_at", Time(), nullable=False),
        sa.CheckConstraint("(url IS NULL) <> (hf_repo IS NULL)", name="fetches_source"),
        sa.CheckConstraint("tries >= 0", name="fetches_tries"),
    )
    op.create_index("fetches_due", "fetches", ["due_at"], unique=False)
    op.create_index("fetches_of_tenant", "fetches", ["tenant_id"], unique=False)


def downgrade() -> None:
    """Takes them away."""
    op.drop_table("fetches")
