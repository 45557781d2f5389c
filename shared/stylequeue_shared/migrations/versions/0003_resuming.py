"""Jobs that go on from where they stood: their checkpoints, and their turn."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

HAS_CHECKPOINT = sa.text("checkpoint_key IS NOT NULL")


def upgrade() -> None:
    # Waiting jobs keep their order; what an older version submits meanwhile is next.
    zero = sa.text("0")
    op.add_column(
        "jobs", sa.Column("turn", sa.Double(), nullable=False, server_default=zero)
    )
    op.execute("UPDATE jobs SET turn = created_at")
    op.add_column("jobs", sa.Column("checkpoint_key", sa.String(200), nullable=True))
    op.add_column("jobs", sa.Column("checkpoint_step", sa.Integer(), nullable=True))
    op.add_column(
        "jobs", sa.Column("faults", sa.Integer(), nullable=False, server_default=zero)
    )
    op.add_column("jobs", sa.Column("avoids", sa.String(200), nullable=True))
    op.add_column("jobs", sa.Column("least_bytes", sa.BigInteger(), nullable=True))
    op.add_column("workers", sa.Column("refuses", sa.String(200), nullable=True))
    for name in ("width", "height"):
        op.add_column("snapshots", sa.Column(name, sa.Integer(), nullable=True))
    op.drop_index("jobs_by_turn", "jobs")
    op.create_index("jobs_by_turn", "jobs", ["state", "turn", "id"])
    op.create_index("jobs_by_age", "jobs", ["state", "created_at", "id"])
    op.create_index(
        "jobs_by_checkpoint",
        "jobs",
        ["state"],
        sqlite_where=HAS_CHECKPOINT,
        postgresql_where=HAS_CHECKPOINT,
    )


def downgrade() -> None:
    op.drop_index("jobs_by_checkpoint", "jobs")
    op.drop_index("jobs_by_age", "jobs")
    op.drop_index("jobs_by_turn", "jobs")
    op.create_index("jobs_by_turn", "jobs", ["state", "created_at", "id"])
    for name in ("height", "width"):
        op.drop_column("snapshots", name)
    op.drop_column("workers", "refuses")
    for name in (
        *("least_bytes", "avoids", "faults"),
        *("checkpoint_step", "checkpoint_key", "turn"),
    ):
        op.drop_column("jobs", name)
