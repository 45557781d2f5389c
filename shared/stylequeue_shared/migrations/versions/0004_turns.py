"""Classes of priority, owners who share the workers, and what operators turn."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in (
        sa.Column("priority", sa.String(8), nullable=False, server_default="normal"),
        sa.Column("owner", sa.String(64), nullable=False, server_default=sa.text("''")),
        # What an older version submits meanwhile is next.
        sa.Column("line", sa.String(72), nullable=False, server_default="0"),
        sa.Column("claimed_at", sa.Double(), nullable=True),
    ):
        op.add_column("jobs", column)
    # The class `normal`; jobs that ran are ahead of all classes.
    op.execute("UPDATE jobs SET line = '2' WHERE turn > 0")
    op.execute("UPDATE jobs SET claimed_at = started_at")
    op.drop_index("jobs_by_turn", "jobs")
    op.create_index("jobs_by_line", "jobs", ["state", "line", "turn", "id"])
    # A report changes no indexed column, and finds room beside the row's last version.
    op.drop_index("jobs_by_lease", "jobs")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE jobs SET (fillfactor = 70)")
    op.create_table(
        "owners",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("used_seconds", sa.Double(), nullable=False),
        sa.Column("used_at", sa.Double(), nullable=False),
        sa.Column("total_seconds", sa.Double(), nullable=False),
    )
    op.create_table("switches", sa.Column("name", sa.String(64), primary_key=True))
    op.add_column("workers", sa.Column("drain", sa.String(16), nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "drain")
    op.drop_table("switches")
    op.drop_table("owners")
    op.create_index("jobs_by_lease", "jobs", ["state", "lease_until"])
    op.drop_index("jobs_by_line", "jobs")
    op.create_index("jobs_by_turn", "jobs", ["state", "turn", "id"])
    for name in ("claimed_at", "line", "owner", "priority"):
        op.drop_column("jobs", name)
