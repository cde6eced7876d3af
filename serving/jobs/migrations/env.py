"""What alembic runs: the migrations, on the connection that `serving.jobs.database` hands over."""

from __future__ import annotations

from alembic import context

from serving.jobs.tables import Base

# batch mode: SQLite cannot alter a column in place.
context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
