"""Run by Alembic: hands it our connection and tables."""

from alembic import context
from sqlmodel import SQLModel

import store.webhooks.tables  # noqa: F401  # fills the metadata, with all of store.tables

context.configure(connection=context.config.attributes["connection"], target_metadata=SQLModel.metadata)
with context.begin_transaction():
    context.run_migrations()
