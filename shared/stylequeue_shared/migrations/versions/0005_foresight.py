"""When jobs will start and end, and what workers count for Prometheus."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("eta_start", "eta_finish"):
        op.add_column("jobs", sa.Column(name, sa.Double(), nullable=True))
    op.add_column("workers", sa.Column("pace", sa.Double(), nullable=True))
    op.add_column("workers", sa.Column("tally", sa.JSON(), nullable=True))
    op.create_table(
        "counters",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.Double(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("counters")
    op.drop_column("workers", "tally")
    op.drop_column("workers", "pace")
    for name in ("eta_finish", "eta_start"):
        op.drop_column("jobs", name)
