"""Taking the job whose turn it is: by workers, any number of them at once."""

from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Select,
    bindparam,
    case,
    delete,
    exists,
    func,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.exc import DataError
from sqlalchemy.sql.dml import ReturningUpdate

from stylequeue_shared.database import Database, now
from stylequeue_shared.job_settings import JobSettings
from stylequeue_shared.jobs.rows import fail_unreadable, put_aside, styles_of
from stylequeue_shared.jobs.terms import ALIVE_SECONDS, Claim
from stylequeue_shared.models import (
    NEXT_VERSION,
    PAUSED,
    Job,
    JobState,
    Snapshot,
    Switch,
    Worker,
)
from stylequeue_shared.stored_values import (
    LONGEST_SECONDS,
    estimate_of,
    finite,
    json_number,
    object_of,
    seconds_of,
    time_of,
)
from stylequeue_shared.turns import next_job

# PostgreSQL's lock under which jobs are claimed; any other number does.
CLAIMING = 7_212
_LOCK = select(func.pg_advisory_xact_lock(CLAIMING))


def claim(
    database: Database,
    worker: str,
    *,
    lease_seconds: float,
    budget: int | None = None,
) -> Claim | None:
    """Take the job whose turn it is and that fits into `budget` bytes, or None.

    One atomic UPDATE decides; any number of workers may call it at once. A job whose
    row this version cannot read fails, and the next one is taken.
    """
    while True:
        try:
            with database.write() as connection:
                return _claim(connection, worker, lease_seconds, budget)
        except _CannotBeTakenError as error:
            put_aside(database, error.job_id, error.__cause__ or error)


class _CannotBeTakenError(Exception):
    """Raised when the database cannot compute the new values of a job."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id


def _claim(
    connection: Connection, worker: str, lease_seconds: float, budget: int | None
) -> Claim | None:
    while row := _take_turn(connection, worker, lease_seconds, budget):
        try:
            return _read(row, styles_of(connection, row.id))
        except ValueError as error:
            # Without this it would run, for everybody but a worker, until its lease
            # ends.
            fail_unreadable(connection, row.id, error)
    return None


def _read(row: Any, shas: tuple[str, ...]) -> Claim:
    """Return the claim of a job that was taken. Raises ValueError."""
    settings = JobSettings.model_validate(row.settings)
    made_with = object_of(row.made_with)
    if made_with is None and row.made_with is not None:
        raise ValueError("made_with is not a JSON object")
    # An estimate is only that: a job with a wrong one is as good as one without.
    return Claim(
        *(row.id, row.attempt, settings, row.content_sha, shas),
        *(made_with, row.checkpoint_key, row.faults, estimate_of(row.estimate)),
        _waited(row) if row.attempt == 1 else None,
    )


def _waited(row: Any) -> float | None:
    """Return for how long a job waited for its first start, None if its times err."""
    since, until = finite(row.created_at), finite(row.started_at)
    if since is None or until is None:
        return None
    return float(min(max(0.0, until - since), LONGEST_SECONDS))


def _take_turn(
    connection: Connection, worker: str, lease_seconds: float, budget: int | None
) -> Any:
    """Mark the job whose turn it is as running and return its row, if there is one.

    Raises _CannotBeTakenError.
    """
    turn, asked = _turn(limited=budget is not None), {"by": worker, "budget": budget}
    given = {"by": worker, "seconds": lease_seconds}
    if connection.dialect.name == "postgresql":
        # Whose turn it is depends on who was claimed before.
        connection.execute(_LOCK)
    while (job_id := connection.scalar(turn, asked)) is not None:
        try:
            row = connection.execute(_take(), given | {"turn_of": job_id}).one_or_none()
        except DataError as error:
            raise _CannotBeTakenError(job_id) from error
        # None: somebody cancelled or paused it just now.
        if row is not None:
            if row.attempt > 1:
                _forget_snapshots_after(connection, row.id, row.checkpoint_step)
            return row
    return None


# Composed once: while one worker claims all others wait, and to compose these takes
# about as long as to run them.


@cache
def _turn(*, limited: bool) -> Select[str]:
    """Return the SELECT of the job whose turn it is, for a worker `by` that name.

    `limited`: of those that fit into its `budget`.
    """
    by: ColumnElement[str] = bindparam("by")
    another = exists().where(
        Worker.name != by,
        Worker.seen_at > now() - ALIVE_SECONDS,
        Worker.refuses.is_(None),
        Worker.drain.is_(None),
        # Nor is one that could not hold it.
        or_(
            Job.least_bytes.is_(None),
            Worker.budget_bytes.is_(None),
            Worker.budget_bytes >= Job.least_bytes,
        ),
    )
    drained = exists().where(Worker.name == by, Worker.drain.is_not(None))
    suits = [
        ~exists().where(Switch.name == PAUSED),
        ~drained,
        or_(Job.avoids.is_(None), Job.avoids != by, ~another),
    ]
    if limited:
        fits = Job.least_bytes <= bindparam("budget")
        suits.append(or_(Job.least_bytes.is_(None), fits))
    return next_job(*suits)


@cache
def _take() -> ReturningUpdate[Any]:
    """Return the UPDATE by which a worker takes a job that still waits."""
    return (
        update(Job)
        .where(Job.id == bindparam("turn_of"), Job.state == JobState.QUEUED)
        .values(
            state=JobState.RUNNING,
            version=NEXT_VERSION,
            worker=bindparam("by"),
            attempt=Job.attempt + 1,
            claimed_at=now(),
            eta_start=None,
            # Its owner is charged for it from now on: see `turns`.
            eta_finish=now() + _expected_seconds(),
            lease_until=now() + bindparam("seconds", type_=Float),
            started_at=func.coalesce(Job.started_at, now()),
            # A job that ran before goes on from its checkpoint, or starts again;
            # null stands for "never a step".
            step=case(
                (Job.step.is_(None), null()),
                else_=func.coalesce(Job.checkpoint_step, 0),
            ),
        )
        .returning(
            *(Job.id, Job.attempt, Job.settings, Job.content_sha, Job.made_with),
            *(Job.checkpoint_key, Job.checkpoint_step, Job.faults, Job.estimate),
            *(Job.created_at, Job.started_at),
        )
    )


def _expected_seconds() -> ColumnElement[Any]:
    """Return how long a waiting job is expected to take, null if nobody can say."""
    foretold = case(
        (
            Job.eta_start.is_not(None) & Job.eta_finish.is_not(None),
            seconds_of(time_of(Job.eta_finish) - time_of(Job.eta_start)),
        ),
        else_=null(),
    )
    estimated = seconds_of(json_number(Job.estimate, "seconds"), null())
    return func.coalesce(foretold, estimated)


def _forget_snapshots_after(
    connection: Connection, job_id: str, step: int | None
) -> None:
    """Forget those of steps that are done again: they are saved again."""
    connection.execute(
        delete(Snapshot).where(Snapshot.job_id == job_id, Snapshot.step > (step or 0))
    )
