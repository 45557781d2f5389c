"""Deletions in steps, trash that is kept for a while, when a job was paused."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

COLUMNS: tuple[tuple[str, str, sa.types.TypeEngine[Any]], ...] = (
    ("jobs", "paused_at", sa.Double()),
    ("pictures", "deleting_by", sa.String(32)),
    ("pictures", "deleting_until", sa.Double()),
    ("trash", "emptied_at", sa.Double()),
    ("trash", "tried_at", sa.Double()),
)


def upgrade() -> None:
    for table, name, kind in COLUMNS:
        op.add_column(table, sa.Column(name, kind, nullable=True))


def downgrade() -> None:
    for table, name, _ in COLUMNS:
        op.drop_column(table, name)
