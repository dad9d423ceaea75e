"""The first tables: tenants, keys, assets, tunes with their events, trainers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql  # noqa: F401

from store.dialect import Document, Time
from store.migrations import clock

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# As store.states.trigger_sql() had it then: a migration does not change after it has shipped.
SQLITE_TRIGGER = (
    "CREATE TRIGGER tunes_moves BEFORE UPDATE OF state, lease_epoch ON tunes WHEN (NEW.state <> OLD.state "
    "AND NOT ((OLD.state = 'queued' AND NEW.state IN ('assigned', 'cancelled', 'failed')) OR (OLD.state = "
    "'assigned' AND NEW.state IN ('assigned', 'cancelled', 'failed', 'queued', 'running', 'succeeded')) "
    "OR (OLD.state = 'running' AND NEW.state IN ('assigned', 'cancelled', 'failed', 'queued', "
    "'succeeded')))) OR NEW.lease_epoch < OLD.lease_epoch BEGIN SELECT RAISE(ABORT, 'the table of moves "
    "forbids this'); END"
)
POSTGRESQL_FUNCTION = (
    "CREATE FUNCTION tunes_moves() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the "
    "table of moves forbids this' USING ERRCODE = 'check_violation'; END $$"
)
POSTGRESQL_TRIGGER = (
    "CREATE TRIGGER tunes_moves BEFORE UPDATE OF state, lease_epoch ON tunes FOR EACH ROW WHEN "
    "((NEW.state <> OLD.state AND NOT ((OLD.state = 'queued' AND NEW.state IN ('assigned', 'cancelled', "
    "'failed')) OR (OLD.state = 'assigned' AND NEW.state IN ('assigned', 'cancelled', 'failed', 'queued', "
    "'running', 'succeeded')) OR (OLD.state = 'running' AND NEW.state IN ('assigned', 'cancelled', "
    "'failed', 'queued', 'succeeded')))) OR NEW.lease_epoch < OLD.lease_epoch) EXECUTE FUNCTION "
    "tunes_moves()"
)
POSTGRESQL_LATER = (
    "CREATE FUNCTION tunesmith_later(seconds double precision) RETURNS timestamptz LANGUAGE sql STABLE AS "
    "'SELECT tunesmith_now() + make_interval(secs => seconds)'"
)


def upgrade() -> None:
    """Makes them."""
    op.create_table(
        "liveness",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("seen_at", Time(), nullable=False),
        sa.Column("grace_until", Time(), nullable=False),
        sa.CheckConstraint("id = 1", name="liveness_single"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "tenants",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("is_operator", sa.Boolean(), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("queue_limit", sa.Integer(), nullable=False),
        sa.Column("running_limit", sa.Integer(), nullable=False),
        sa.Column("queued", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("running", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("served_at", Time(), nullable=True),
        sa.Column("created_at", Time(), nullable=False),
        sa.CheckConstraint("queued >= 0 AND running >= 0", name="tenants_counters"),
        sa.CheckConstraint("weight > 0 AND queue_limit >= 0 AND running_limit >= 0", name="tenants_limits"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("tenants_name", "tenants", ["name"], unique=True)
    op.create_table(
        "trainer_tokens",
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("trainer_id", sa.String(), nullable=False),
        sa.Column("created_at", Time(), nullable=False),
        sa.Column("revoked_at", Time(), nullable=True),
        sa.PrimaryKeyConstraint("hash"),
    )
    op.create_index(op.f("ix_trainer_tokens_trainer_id"), "trainer_tokens", ["trainer_id"], unique=False)
    op.create_table(
        "trainers",
        sa.Column("trainer_id", sa.String(), nullable=False),
        sa.Column("boot_id", sa.String(), nullable=False),
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("gateway_id", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("engines", Document(), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("free_slots", sa.Integer(), nullable=False),
        sa.Column("device_name", sa.String(), nullable=False),
        sa.Column("device_memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("connected_at", Time(), nullable=False),
        sa.Column("seen_at", Time(), nullable=False),
        sa.Column("disconnected_at", Time(), nullable=True),
        sa.PrimaryKeyConstraint("trainer_id"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("scopes", Document(), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("created_at", Time(), nullable=False),
        sa.Column("expires_at", Time(), nullable=True),
        sa.Column("revoked_at", Time(), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenants.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("api_keys_hash", "api_keys", ["hash"], unique=True)
    op.create_index(op.f("ix_api_keys_tenant_id"), "api_keys", ["tenant_id"], unique=False)
    op.create_table(
        "assets",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("asset_type", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("status_details", sa.String(), nullable=False),
        sa.Column("status_info", Document(), nullable=True),
        sa.Column("data", Document(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("engine", sa.String(), nullable=True),
        sa.Column("data_type", sa.String(), nullable=True),
        sa.Column("file_format", sa.String(), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("sha256", sa.String(), nullable=True),
        sa.Column("object_key", sa.String(), nullable=True),
        sa.Column("is_public", sa.Boolean(), nullable=False),
        sa.Column("source", Document(), nullable=True),
        sa.Column("file_structure", sa.String(), nullable=True),
        sa.Column("hf_repo", sa.String(), nullable=True),
        sa.Column("url", sa.String(), nullable=True),
        sa.Column("tune_id", sa.String(), nullable=True),
        sa.Column("role", sa.String(), nullable=True),
        sa.Column("created_at", Time(), nullable=False),
        sa.Column("deleted_at", Time(), nullable=True),
        sa.CheckConstraint("(status = 'deleted') = (deleted_at IS NOT NULL)", name="assets_deleted"),
        sa.CheckConstraint(
            "asset_type IN ('file', 'checkpoint', 'lora', 'textual_inversion', 'vae', 'latent')", name="assets_type"
        ),
        sa.CheckConstraint(
            "status IN ('ready_to_upload', 'uploaded', 'ready', 'deleted', 'rejected', 'error')", name="assets_status"
        ),
        sa.CheckConstraint("size_bytes >= 0", name="assets_size"),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenants.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "assets_checkpoints",
        "assets",
        ["sha256"],
        unique=False,
        postgresql_where=sa.text("asset_type = 'checkpoint'"),
        sqlite_where=sa.text("asset_type = 'checkpoint'"),
    )
    op.create_index(
        "assets_listed",
        "assets",
        ["tenant_id", sa.literal_column("created_at DESC"), sa.literal_column("id DESC")],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NULL"),
        sqlite_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "assets_named",
        "assets",
        ["tenant_id", "name", sa.literal_column("created_at DESC")],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NULL"),
        sqlite_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "assets_of_tune",
        "assets",
        ["tune_id", "role"],
        unique=True,
        postgresql_where=sa.text("role IS NOT NULL"),
        sqlite_where=sa.text("role IS NOT NULL"),
    )
    op.create_index(
        "assets_public",
        "assets",
        ["name"],
        unique=False,
        postgresql_where=sa.text("is_public AND deleted_at IS NULL"),
        sqlite_where=sa.text("is_public AND deleted_at IS NULL"),
    )
    op.create_table(
        "queues",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("engine", sa.String(), nullable=False),
        sa.Column("memory_class", sa.Integer(), nullable=False),
        sa.Column("queued", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint("queued >= 0", name="queues_counter"),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenants.id"],
        ),
        sa.PrimaryKeyConstraint("tenant_id", "engine", "memory_class"),
    )
    op.create_table(
        "tunes",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("engine", sa.String(), nullable=False),
        sa.Column("memory_class", sa.Integer(), nullable=False),
        sa.Column("checkpoint_id", sa.String(), nullable=False),
        sa.Column("checkpoint_ref", sa.String(), nullable=False),
        sa.Column("checkpoint_name", sa.String(), nullable=False),
        sa.Column("details", Document(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("trigger_words", Document(), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("continue_on_rejection", sa.Boolean(), nullable=False),
        sa.Column("metadata", Document(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=True),
        sa.Column("request_hash", sa.String(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "queued",
                "assigned",
                "running",
                "succeeded",
                "failed",
                "cancelled",
                name="tunestate",
                native_enum=False,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("status_details", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("output_lora_ids", Document(), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("available", sa.Integer(), nullable=True),
        sa.Column("rejected", Document(), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("unready", Document(), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("phase", sa.String(), nullable=True),
        sa.Column("step", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("loss", sa.Float(), nullable=True),
        sa.Column("steps_per_second", sa.Float(), nullable=True),
        sa.Column("lease_epoch", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease_trainer_id", sa.String(), nullable=True),
        sa.Column("lease_expires_at", Time(), nullable=True),
        sa.Column("lease_claimed_at", Time(), nullable=True),
        sa.Column("reported_seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("crashes", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("cancel_requested_at", Time(), nullable=True),
        sa.Column("resolved_recipe", sa.String(), nullable=True),
        sa.Column("resolved_recipe_sha256", sa.String(), nullable=True),
        sa.Column("snapshot_key", sa.String(), nullable=True),
        sa.Column("snapshot_step", sa.Integer(), nullable=True),
        sa.Column("snapshot_sha256", sa.String(), nullable=True),
        sa.Column("snapshot_size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("final_loss", sa.Float(), nullable=True),
        sa.Column("event_seq", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", Time(), nullable=False),
        sa.Column("updated_at", Time(), nullable=False),
        sa.Column("succeeded_at", Time(), nullable=True),
        sa.Column("ended_at", Time(), nullable=True),
        sa.Column("deleted_at", Time(), nullable=True),
        sa.CheckConstraint("(state = 'succeeded') = (succeeded_at IS NOT NULL)", name="tunes_succeeded"),
        sa.CheckConstraint(
            "(state IN ('assigned', 'running')) = (lease_expires_at IS NOT NULL)"
            " AND (state NOT IN ('assigned', 'running') OR (lease_trainer_id IS NOT NULL AND lease_epoch >= 1))",
            name="tunes_lease",
        ),
        sa.CheckConstraint(
            "state IN ('assigned', 'cancelled', 'failed', 'queued', 'running', 'succeeded')", name="tunes_state"
        ),
        sa.CheckConstraint("(resolved_recipe IS NULL) = (resolved_recipe_sha256 IS NULL)", name="tunes_recipe"),
        sa.CheckConstraint("(snapshot_key IS NULL) = (snapshot_step IS NULL)", name="tunes_snapshot"),
        sa.CheckConstraint("steps >= 1 AND step >= 0 AND attempts >= 0 AND crashes >= 0", name="tunes_counts"),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"],
            ["assets.id"],
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenants.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "tunes_held",
        "tunes",
        ["lease_trainer_id"],
        unique=False,
        postgresql_where=sa.text("lease_expires_at IS NOT NULL"),
        sqlite_where=sa.text("lease_expires_at IS NOT NULL"),
    )
    op.create_index(
        "tunes_leases",
        "tunes",
        ["lease_expires_at"],
        unique=False,
        postgresql_where=sa.text("lease_expires_at IS NOT NULL"),
        sqlite_where=sa.text("lease_expires_at IS NOT NULL"),
    )
    op.create_index(
        "tunes_listed",
        "tunes",
        ["tenant_id", sa.literal_column("created_at DESC"), sa.literal_column("id DESC")],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NULL"),
        sqlite_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "tunes_named",
        "tunes",
        ["tenant_id", "name"],
        unique=True,
        postgresql_where=sa.text("deleted_at IS NULL"),
        sqlite_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "tunes_queue",
        "tunes",
        ["tenant_id", "engine", "memory_class", sa.literal_column("priority DESC"), "created_at", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'queued'"),
        sqlite_where=sa.text("state = 'queued'"),
    )
    op.create_index(
        "tunes_requested",
        "tunes",
        ["tenant_id", "request_id"],
        unique=True,
        postgresql_where=sa.text("request_id IS NOT NULL"),
        sqlite_where=sa.text("request_id IS NOT NULL"),
    )
    op.create_table(
        "events",
        sa.Column("tune_id", sa.String(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("created_at", Time(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("body", Document(), server_default=sa.text("'{}'"), nullable=False),
        sa.ForeignKeyConstraint(
            ["tune_id"],
            ["tunes.id"],
        ),
        sa.PrimaryKeyConstraint("tune_id", "seq"),
    )
    # The service was never alive yet: the first reap gives everybody a whole lease.
    epoch = "0" if op.get_bind().dialect.name == "sqlite" else "to_timestamp(0)"
    op.execute(f"INSERT INTO liveness (id, seen_at, grace_until) VALUES (1, {epoch}, {epoch})")  # noqa: S608
    if op.get_bind().dialect.name == "sqlite":  # tunesmith_now() is made on each connection there (store/database.py)
        op.execute(SQLITE_TRIGGER)
    else:
        for statement in (POSTGRESQL_FUNCTION, POSTGRESQL_TRIGGER, clock(), POSTGRESQL_LATER):
            op.execute(statement)
