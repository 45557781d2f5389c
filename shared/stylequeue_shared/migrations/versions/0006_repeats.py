"""Submissions sent more than once, and what a retry repeats."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "submission_keys",
        sa.Column("key", sa.String(330), primary_key=True),
        sa.Column("holder", sa.String(36), nullable=False),
        sa.Column("digest", sa.String(64), nullable=True),
        sa.Column("job_id", sa.String(36), nullable=True),
        sa.Column("until", sa.Double(), nullable=False),
    )
    for name in ("job_id", "until"):
        op.create_index(f"ix_submission_keys_{name}", "submission_keys", [name])
    op.add_column("jobs", sa.Column("retry_of", sa.String(36), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "retry_of")
    op.drop_table("submission_keys")
