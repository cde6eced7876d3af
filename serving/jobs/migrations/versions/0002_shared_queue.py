"""Owners, shares, leases and expiry of jobs; idempotency keys in a table of their own; webhook deliveries; batches."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ADDED = (
    "owner",
    "weight",
    "deadline_s",
    "expires_at",
    "lease_owner",
    "lease_until",
    "attempt",
    "webhook_url",
    "webhook_secret",
    "batch_id",
    "batch_row",
    "custom_id",
)


def upgrade() -> None:
    """Apply."""
    _make_tables()
    op.execute(
        "INSERT INTO idempotency (owner, key, request_hash, target) "
        "SELECT '', idempotency_key, body_hash, id FROM jobs WHERE idempotency_key IS NOT NULL"
    )
    with op.batch_alter_table("jobs", table_kwargs={"sqlite_autoincrement": True}) as jobs:
        jobs.drop_column("idempotency_key")
        jobs.drop_column("body_hash")
        jobs.add_column(sa.Column("owner", sa.String(64), nullable=False, server_default=""))
        jobs.add_column(sa.Column("weight", sa.Float(), nullable=False, server_default="1"))
        jobs.add_column(sa.Column("deadline_s", sa.Float()))
        jobs.add_column(sa.Column("expires_at", sa.Float()))
        jobs.add_column(sa.Column("lease_owner", sa.String(100)))
        jobs.add_column(sa.Column("lease_until", sa.Float()))
        jobs.add_column(sa.Column("attempt", sa.Integer(), nullable=False, server_default="0"))
        jobs.add_column(sa.Column("webhook_url", sa.Text()))
        jobs.add_column(sa.Column("webhook_secret", sa.Text()))
        jobs.add_column(sa.Column("batch_id", sa.String(40)))
        jobs.add_column(sa.Column("batch_row", sa.Integer()))
        jobs.add_column(sa.Column("custom_id", sa.String(255)))
        jobs.create_foreign_key("jobs_batch_id", "batches", ["batch_id"], ["id"])
        jobs.create_index("jobs_owner", ["owner", "seq"])
        jobs.create_index("jobs_expiry", ["expires_at"])
        jobs.create_index("jobs_started", ["started_at"])
        jobs.create_index("jobs_batch", ["batch_id", "batch_row"])


def _make_tables() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.String(40), primary_key=True, nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
    )
    op.create_index("batches_owner", "batches", ["owner", "created_at"])
    op.create_table(
        "idempotency",
        sa.Column("owner", sa.String(64), primary_key=True, nullable=False),
        sa.Column("key", sa.String(255), primary_key=True, nullable=False),
        sa.Column("request_hash", sa.String(64), nullable=False),
        sa.Column("target", sa.String(40), nullable=False),
    )
    op.create_index("idempotency_target", "idempotency", ["target"])
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(40), primary_key=True, nullable=False),
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.Text()),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("next_at", sa.Float(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
    )
    op.create_index("deliveries_due", "deliveries", ["next_at"])


def downgrade() -> None:
    """Undo; what the new columns and tables held is lost, and keys of owners with it."""
    with op.batch_alter_table("jobs", table_kwargs={"sqlite_autoincrement": True}) as jobs:
        for name in ("jobs_owner", "jobs_expiry", "jobs_started", "jobs_batch"):
            jobs.drop_index(name)
        jobs.drop_constraint("jobs_batch_id", type_="foreignkey")
        for name in _ADDED:
            jobs.drop_column(name)
        jobs.add_column(sa.Column("idempotency_key", sa.String(255)))
        jobs.add_column(sa.Column("body_hash", sa.String(64), nullable=False, server_default=""))
        jobs.create_unique_constraint("uq_jobs_idempotency_key", ["idempotency_key"])
    for table in ("deliveries", "idempotency", "batches"):
        op.drop_table(table)
