"""What workers can do, and what a job was estimated to take."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("estimate", sa.JSON(), nullable=True))
    for column in (
        sa.Column("budget_bytes", sa.BigInteger(), nullable=True),
        sa.Column("gpu", sa.Boolean(), nullable=True),
        sa.Column("operations_per_second", sa.Double(), nullable=True),
        sa.Column("low_operations_per_second", sa.Double(), nullable=True),
        sa.Column("bytes_per_second", sa.Double(), nullable=True),
    ):
        op.add_column("workers", column)


def downgrade() -> None:
    for name in (
        "bytes_per_second",
        "low_operations_per_second",
        "operations_per_second",
        "gpu",
        "budget_bytes",
    ):
        op.drop_column("workers", name)
    op.drop_column("jobs", "estimate")
