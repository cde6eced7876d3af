"""Pictures that are sent apart from a request."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "uploads",
        sa.Column("owner", sa.String(64), primary_key=True, nullable=False),
        sa.Column("id", sa.String(80), primary_key=True, nullable=False),
        sa.Column("file", sa.String(40), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
    )
    op.create_index("uploads_expiry", "uploads", ["expires_at"])


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("uploads")
