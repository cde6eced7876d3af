"""Rates that gateways share, and which engine ran a job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table, add the column."""
    op.create_table(
        "rates",
        sa.Column("key_id", sa.String(40), primary_key=True, nullable=False),
        sa.Column("level", sa.Float(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
    )
    op.add_column("jobs", sa.Column("engine", sa.JSON()))


def downgrade() -> None:
    """Drop them."""
    with op.batch_alter_table("jobs") as table:
        table.drop_column("engine")
    op.drop_table("rates")
