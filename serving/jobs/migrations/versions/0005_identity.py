"""What a job's video depends on, as a hash: so that an identical request finds it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column and its index."""
    op.add_column("jobs", sa.Column("identity", sa.String(64)))
    op.create_index("jobs_identity", "jobs", ["owner", "identity"])


def downgrade() -> None:
    """Drop them."""
    op.drop_index("jobs_identity", "jobs")
    with op.batch_alter_table("jobs") as table:
        table.drop_column("identity")
