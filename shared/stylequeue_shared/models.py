"""The tables: jobs, their pictures and snapshots, workers, and the housekeeper's lease.

Times are seconds since 1970 by the database's own clock (see `database.now`), so that
leases compare alike on SQLite and PostgreSQL whatever the machines' clocks say.
"""

from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from stylequeue_shared.stored_values import StoredJSON

# The switch by which an operator has no job claimed.
PAUSED = "queue_paused"


# The counter of jobs whose worker vanished.
LOST_LEASES = "lost_leases"
# The counter of rows that could not be read, and were skipped or failed.
SKIPPED_ROWS = "skipped_rows"
# The counter of what owners had of the workers who are forgotten by now.
FORGOTTEN_OWNERS = "worker_seconds_of_forgotten_owners"


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether a job in this state never changes again."""
        return self in TERMINAL


TERMINAL = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {dict[str, Any]: StoredJSON}


class Job(Base):
    """One job, from submission to its end."""

    __tablename__ = "jobs"
    __table_args__ = (
        # The claim's question: who waits in which line, and who is first in it.
        Index("jobs_by_line", "state", "line", "turn", "id"),
        # The list's: newest first.
        Index("jobs_by_age", "state", "created_at", "id"),
        # None of what each report changes, so that PostgreSQL need not touch an index
        # for one: whose lease ran out is looked for among the few that run.
        Index("jobs_by_content", "content_sha"),
        # The housekeeper's: checkpoints of ended jobs.
        Index(
            "jobs_by_checkpoint",
            "state",
            sqlite_where=text("checkpoint_key IS NOT NULL"),
            postgresql_where=text("checkpoint_key IS NOT NULL"),
        ),
        # Room for the next version of a row beside it.
        {"postgresql_with": {"fillfactor": 70}},
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    # Grows with every change a client can see: the heart of the ETag.
    version: Mapped[int] = mapped_column(default=1)
    settings: Mapped[dict[str, Any]]
    content_sha: Mapped[str] = mapped_column(ForeignKey("pictures.sha256"))

    created_at: Mapped[float]
    # Whose turn it is: see `turns`. (Versions before this one, which may run beside it
    # during an upgrade, give none of these: their jobs are next.)
    priority: Mapped[str] = mapped_column(String(8), server_default="normal")
    owner: Mapped[str] = mapped_column(String(64), server_default=text("''"))
    line: Mapped[str] = mapped_column(String(72), server_default="0")
    turn: Mapped[float] = mapped_column(server_default=text("0"))
    # When a worker took it last.
    claimed_at: Mapped[float | None]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    # When it was paused last; earlier releases leave it alone.
    paused_at: Mapped[float | None]

    attempt: Mapped[int] = mapped_column(default=0)
    worker: Mapped[str | None] = mapped_column(String(200))
    lease_until: Mapped[float | None]
    requested: Mapped[str | None] = mapped_column(String(16))
    # Attempts in a row whose worker vanished, since the newest checkpoint; hand-backs
    # do not count.
    losses: Mapped[int] = mapped_column(default=0)
    # On how many workers it failed by the machine's fault, and the last of them.
    faults: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    avoids: Mapped[str | None] = mapped_column(String(200))
    # The memory that it takes at least; once it has run, that of its plan.
    least_bytes: Mapped[int | None] = mapped_column(BigInteger)
    # The state in the store that the job goes on from.
    checkpoint_key: Mapped[str | None] = mapped_column(String(200))
    checkpoint_step: Mapped[int | None]

    step: Mapped[int | None]
    style_loss: Mapped[float | None]
    content_loss: Mapped[float | None]
    steps_per_second: Mapped[float | None]
    eta_seconds: Mapped[float | None]

    # When it is expected to start, while it waits, and to end.
    eta_start: Mapped[float | None]
    eta_finish: Mapped[float | None]

    stop_reason: Mapped[str | None] = mapped_column(String(32))
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(String(2000))
    error_fault: Mapped[str | None] = mapped_column(String(16))

    result_key: Mapped[str | None] = mapped_column(String(200))
    result_width: Mapped[int | None]
    result_height: Mapped[int | None]
    result_partial: Mapped[bool | None]
    # Weights digest, torch build, device, threads: what the picture depends on.
    made_with: Mapped[dict[str, Any] | None] = mapped_column(StoredJSON)
    # Seconds, memory and worker as foreseen when it was submitted.
    estimate: Mapped[dict[str, Any] | None] = mapped_column(
        StoredJSON(none_as_null=True)
    )

    # The job whose pictures and settings it has; that may be deleted by now.
    retry_of: Mapped[str | None] = mapped_column(String(36))

    styles: Mapped[list["JobStyle"]] = relationship(
        order_by="JobStyle.position", cascade="all, delete-orphan"
    )
    snapshots: Mapped[list["Snapshot"]] = relationship(
        order_by="Snapshot.step", cascade="all, delete-orphan"
    )


class JobStyle(Base):
    """One style picture of a job."""

    __tablename__ = "job_styles"
    __table_args__ = (Index("job_styles_by_picture", "sha256"),)

    job_id: Mapped[str] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(ForeignKey("pictures.sha256"))


class Snapshot(Base):
    """The picture after one step; its file exists before its row."""

    __tablename__ = "snapshots"

    job_id: Mapped[str] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    step: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(200))
    style_loss: Mapped[float]
    content_loss: Mapped[float]
    width: Mapped[int | None]
    height: Mapped[int | None]


class Picture(Base):
    """An uploaded picture, stored once per SHA-256 of its original bytes."""

    __tablename__ = "pictures"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    media_type: Mapped[str] = mapped_column(String(32))
    width: Mapped[int]
    height: Mapped[int]
    bytes: Mapped[int]
    # Deleted by the housekeeper an hour after this, unless a job refers to it.
    used_at: Mapped[float]
    # Which deletion is removing the file, and until when nobody may use the picture
    # because of it: see `jobs.pictures`.
    deleting_by: Mapped[str | None] = mapped_column(String(32))
    deleting_until: Mapped[float | None]


class Worker(Base):
    """A worker as it last described itself."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    host: Mapped[str] = mapped_column(String(200))
    device: Mapped[str] = mapped_column(String(200))
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    # What a job's estimate is made from: see `estimates`.
    budget_bytes: Mapped[int | None] = mapped_column(BigInteger)
    gpu: Mapped[bool | None]
    operations_per_second: Mapped[float | None]
    low_operations_per_second: Mapped[float | None]
    bytes_per_second: Mapped[float | None]
    # Why it takes no more jobs.
    refuses: Mapped[str | None] = mapped_column(String(200))
    # An operator's word that it is to take no more, and what of the job it runs.
    drain: Mapped[str | None] = mapped_column(String(16))
    # How long jobs took here lately, by their own estimates.
    pace: Mapped[float | None]
    # What it counted since its start.
    tally: Mapped[dict[str, Any] | None] = mapped_column(StoredJSON(none_as_null=True))
    started_at: Mapped[float]
    seen_at: Mapped[float]


class Owner(Base):
    """One whose jobs share the workers with those of others."""

    __tablename__ = "owners"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    # Worker-seconds: those of lately, as they counted at `used_at`, and all ever.
    used_seconds: Mapped[float]
    used_at: Mapped[float]
    total_seconds: Mapped[float]


class Switch(Base):
    """Something that an operator turned on for the whole installation."""

    __tablename__ = "switches"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)


class SubmissionKey(Base):
    """A client's `Idempotency-Key`: one submission, however often it is sent."""

    __tablename__ = "submission_keys"

    # With the owner before it: clients of one know nothing of another's.
    key: Mapped[str] = mapped_column(String(330), primary_key=True)
    # The request that is at it.
    holder: Mapped[str] = mapped_column(String(36))
    # Of pictures and settings, and the job that came of them; null until then.
    digest: Mapped[str | None] = mapped_column(String(64))
    job_id: Mapped[str | None] = mapped_column(String(36), index=True)
    until: Mapped[float] = mapped_column(index=True)


class Counter(Base):
    """Something that is counted for the whole installation, and never forgotten."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[float]


class Lease(Base):
    """A right that one process at a time holds, such as housekeeping."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    holder: Mapped[str] = mapped_column(String(200))
    until: Mapped[float]


class Trash(Base):
    """Files that nobody needs, which the housekeeper removes from the store."""

    __tablename__ = "trash"

    prefix: Mapped[str] = mapped_column(String(200), primary_key=True)
    # When its files were deleted for the first time; see `jobs.trash`.
    emptied_at: Mapped[float | None]
    # When deleting them failed last.
    tried_at: Mapped[float | None]


# A poll's ETag has the version; it begins again where PostgreSQL's integers end.
NEXT_VERSION = Job.version % (2**31 - 1) + 1
