"""The life of a job: every change of its state, and nothing else writes it.

queued -> running -> succeeded | failed | cancelled       paused <-> queued
   ^---------+  lease lost, or handed back by a worker       running -> paused
                that shuts down: goes on from its checkpoint

Each function is one transaction. What a worker writes is guarded by job id, attempt
and `state = 'running'`, so a worker that lost its job can change nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import uuid_utils
from pydantic import ValidationError
from sqlalchemy import (
    ColumnElement,
    Connection,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from stylequeue_shared.artefacts import job_prefix
from stylequeue_shared.database import Database, now
from stylequeue_shared.decoding import Inspected
from stylequeue_shared.errors import (
    Conflict,
    LeaseLost,
    MachineError,
    NotFound,
    OurError,
    QueueFull,
    StyleQueueError,
    WorkerLost,
)
from stylequeue_shared.job_settings import JobSettings
from stylequeue_shared.models import (
    LOST_LEASES,
    PAUSED,
    TERMINAL,
    Base,
    Counter,
    Job,
    JobState,
    JobStyle,
    Owner,
    Picture,
    Snapshot,
    SubmissionKey,
    Switch,
    Trash,
    Worker,
)
from stylequeue_shared.once import Once
from stylequeue_shared.turns import (
    Priority,
    ahead,
    in_front,
    next_job,
    standing,
    turn_of,
    used_seconds,
)

# Workers lost after which the job, not the machines, is to blame.
MAX_LOSSES = 5
# Workers on which a job may fail by the machine's fault.
MAX_FAULTS = 3
# A worker beats every 5 s; after three missed beats it counts as gone.
ALIVE_SECONDS = 15.0
# What may be asked of a job that is not at its end.
Request = Literal["cancel", "finish", "pause"]
# The values of a job that failed by the fault of the machine it ran on.
_AWAY = {"faults": Job.faults + 1, "avoids": Job.worker}
# PostgreSQL's locks under which waiting jobs are counted and added, and under which
# they are claimed; any numbers do.
SUBMITTING, CLAIMING = 7_211, 7_212


@dataclass(frozen=True)
class Claim:
    """A worker's right to run one attempt of a job, and what it needs for it."""

    job_id: str
    attempt: int
    settings: JobSettings
    content_sha: str
    style_shas: tuple[str, ...]
    # What an earlier attempt noted of the job: its memory budget holds for all.
    made_with: dict[str, Any] | None = None
    # The key of the state to go on from.
    checkpoint: str | None = None
    # On how many workers it has failed by the machine's fault.
    faults: int = 0
    # What it was estimated to take when it was submitted.
    estimate: dict[str, Any] | None = None
    # The seconds that it waited for its first start; None if it started before.
    waited: float | None = None


@dataclass(frozen=True)
class Progress:
    """How far an attempt is; losses are weighted, speed is optimisation time only."""

    step: int
    style_loss: float
    content_loss: float
    steps_per_second: float
    eta_seconds: float


@dataclass(frozen=True)
class Expected:
    """When a job will start, None if it has, and when it will end; since 1970."""

    job_id: str
    start: float | None
    finish: float


@dataclass(frozen=True)
class Result:
    """The final picture in the store."""

    key: str
    width: int
    height: int
    partial: bool = False


# -- Submitting -----------------------------------------------------------------------


def keep_pictures(database: Database, pictures: Sequence[Inspected]) -> None:
    """Record pictures as used now; call it before their bytes are stored.

    From here on the housekeeper leaves them alone for an hour.
    """
    with database.write() as connection:
        # In order: two that lock the same pictures must not wait for each other.
        for picture in sorted(set(pictures), key=lambda picture: picture.sha256):
            row = _upsert(connection, Picture).values(
                sha256=picture.sha256,
                media_type=picture.media_type,
                width=picture.width,
                height=picture.height,
                bytes=picture.bytes,
                used_at=now(),
            )
            connection.execute(
                row.on_conflict_do_update(
                    index_elements=[Picture.sha256], set_={"used_at": now()}
                )
            )


def submit(
    database: Database,
    settings: JobSettings,
    content_sha: str,
    style_shas: Sequence[str],
    *,
    max_waiting: int,
    estimate: dict[str, Any] | None = None,
    least_bytes: int | None = None,
    priority: Priority = "normal",
    owner: str = "",
    repeats: tuple[Once, str] | None = None,
) -> str:
    """Record a job as queued and return its id, a UUIDv7.

    No worker that may take less than `least_bytes` of memory is to claim it. The jobs
    of an `owner` share the workers with those of others; many installations have one.
    `repeats`, a client's key with the digest of what it sent, stands for the job then.
    Raises QueueFull when `max_waiting` jobs wait already, and InFlight.
    """
    values = {"estimate": estimate, "least_bytes": least_bytes}
    values |= {"turn": turn_of(now(), priority), **standing(priority, owner)}
    with database.write() as connection:
        refuse_when_full(connection, max_waiting)
        job_id = _insert(
            connection, settings.model_dump(), content_sha, style_shas, values
        )
        if repeats is not None:
            key, digest = repeats
            key.record(connection, digest, job_id)
        return job_id


def retry(database: Database, job_id: str, *, max_waiting: int) -> str:
    """Record a new job with the pictures, settings and estimate of an ended one.

    It has the same owner, but no priority: that is not for everybody to repeat.
    Raises NotFound, Conflict while it is not terminal, and QueueFull.
    """
    with database.write() as connection:
        job = _state_of(connection, job_id)
        if not JobState(job.state).is_terminal:
            raise Conflict(f"The job is {job.state}; only an ended job can be retried.")
        refuse_when_full(connection, max_waiting)
        shas = _styles_of(connection, job_id)
        _touch_pictures(connection, [job_id])
        values = {"estimate": job.estimate, "least_bytes": job.least_bytes}
        values |= {"turn": now(), **standing("normal", job.owner)}
        values["retry_of"] = job_id
        return _insert(connection, job.settings, job.content_sha, shas, values)


def refuse_when_full(connection: Connection, max_waiting: int) -> None:
    """Raise QueueFull when `max_waiting` jobs wait already."""
    if connection.dialect.name == "postgresql":
        # Else two that count at once both find the last place free.
        connection.execute(select(func.pg_advisory_xact_lock(SUBMITTING)))
    waiting = connection.scalar(
        select(func.count()).where(Job.state == JobState.QUEUED)
    )
    if waiting is not None and waiting >= max_waiting:
        raise QueueFull(
            f"{waiting} jobs are waiting already, at most {max_waiting} may "
            "(STYLEQUEUE_MAX_WAITING); please try again later."
        )


def _insert(
    connection: Connection,
    settings: dict[str, Any],
    content_sha: str,
    style_shas: Sequence[str],
    values: dict[str, Any],
) -> str:
    job_id = str(uuid_utils.uuid7())
    connection.execute(
        insert(Job).values(
            id=job_id,
            state=JobState.QUEUED,
            settings=settings,
            content_sha=content_sha,
            created_at=now(),
            **values,
        )
    )
    connection.execute(
        insert(JobStyle),
        [
            {"job_id": job_id, "position": position, "sha256": sha}
            for position, sha in enumerate(style_shas)
        ],
    )
    return job_id


# -- Running: called by workers -------------------------------------------------------


def claim(
    database: Database,
    worker: str,
    *,
    lease_seconds: float,
    budget: int | None = None,
) -> Claim | None:
    """Take the job whose turn it is and that fits into `budget` bytes, or None.

    One atomic UPDATE decides; any number of workers may call it at once. A job whose
    stored settings this version refuses fails, and the next one is taken.
    """
    with database.write() as connection:
        while row := _take_turn(connection, worker, lease_seconds, budget):
            try:
                settings = JobSettings.model_validate(row.settings)
            except ValidationError as error:
                # Else it would run, for everybody but a worker, until its lease ends.
                here = update(Job).where(Job.id == row.id)
                connection.execute(here.values(**_unreadable(error)))
                continue
            shas = _styles_of(connection, row.id)
            return Claim(
                *(row.id, row.attempt, settings, row.content_sha, shas),
                *(row.made_with, row.checkpoint_key, row.faults, row.estimate),
                row.waited if row.attempt == 1 else None,
            )
    return None


def _take_turn(
    connection: Connection, worker: str, lease_seconds: float, budget: int | None
) -> Any:
    """Mark the job whose turn it is as running and return its row, if there is one."""
    if connection.dialect.name == "postgresql":
        # Whose turn it is depends on who was claimed before.
        connection.execute(select(func.pg_advisory_xact_lock(CLAIMING)))
    turn = next_job(*_suits(worker, budget))
    while (job_id := connection.scalar(turn)) is not None:
        row = connection.execute(
            update(Job)
            .where(Job.id == job_id, Job.state == JobState.QUEUED)
            .values(
                state=JobState.RUNNING,
                version=Job.version + 1,
                worker=worker,
                attempt=Job.attempt + 1,
                claimed_at=now(),
                eta_start=None,
                # Its owner is charged for it from now on: see `turns`.
                eta_finish=now()
                + func.coalesce(
                    Job.eta_finish - Job.eta_start, Job.estimate["seconds"].as_float()
                ),
                lease_until=now() + lease_seconds,
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
                (Job.started_at - Job.created_at).label("waited"),
            )
        ).one_or_none()
        # None: somebody cancelled or paused it just now.
        if row is not None:
            if row.attempt > 1:
                _forget_snapshots_after(connection, row.id, row.checkpoint_step)
            return row
    return None


def _suits(worker: str, budget: int | None) -> list[ColumnElement[bool]]:
    """Return what makes a waiting job one that this worker may claim."""
    another = exists().where(
        Worker.name != worker,
        Worker.seen_at > now() - ALIVE_SECONDS,
        Worker.refuses.is_(None),
        Worker.drain.is_(None),
    )
    drained = exists().where(Worker.name == worker, Worker.drain.is_not(None))
    suits = [
        ~exists().where(Switch.name == PAUSED),
        ~drained,
        or_(Job.avoids.is_(None), Job.avoids != worker, ~another),
    ]
    if budget is not None:
        suits.append(or_(Job.least_bytes.is_(None), Job.least_bytes <= budget))
    return suits


def _forget_snapshots_after(
    connection: Connection, job_id: str, step: int | None
) -> None:
    """Forget those of steps that are done again: they are saved again."""
    connection.execute(
        delete(Snapshot).where(Snapshot.job_id == job_id, Snapshot.step > (step or 0))
    )


def _unreadable(error: ValidationError) -> dict[str, Any]:
    first = error.errors(include_url=False, include_input=False)[0]
    field = first["loc"][0] if first["loc"] else "settings"
    return _failed(
        OurError(f"The stored settings cannot be read: {field}: {first['msg']}")
    )


def renew(database: Database, held: Claim, *, lease_seconds: float) -> str | None:
    """Renew the lease and return what is requested of the job, such as `cancel`.

    A lease that ran out but was not given away is renewed all the same.
    Raises LeaseLost when the job belongs to another attempt.
    """
    return _guarded(database, held, {"lease_until": now() + lease_seconds})


def report(
    database: Database, held: Claim, progress: Progress, *, lease_seconds: float
) -> str | None:
    """Write progress, renew the lease and return what is requested of the job.

    Raises LeaseLost when the job belongs to another attempt.
    """
    values = {
        **vars(progress),
        "lease_until": now() + lease_seconds,
        "version": Job.version + 1,
    }
    return _guarded(database, held, values)


def describe(
    database: Database,
    held: Claim,
    made_with: dict[str, Any],
    least_bytes: int | None = None,
) -> None:
    """Record what the picture depends on besides its settings: weights, device.

    From now on it takes `least_bytes` of memory, wherever it goes on.
    """
    values = {"made_with": made_with, "version": Job.version + 1}
    if least_bytes is not None:
        values["least_bytes"] = least_bytes
    _guarded(database, held, values)


def add_snapshot(
    database: Database,
    held: Claim,
    key: str,
    progress: Progress,
    size: tuple[int, int],
) -> None:
    """Record a snapshot whose file is in the store already, and the progress.

    `size` is its width and height.

    Raises LeaseLost when the job belongs to another attempt.
    """
    values = {**vars(progress), "version": Job.version + 1}
    with database.write() as connection:
        _guard(connection, held, values)
        row = _upsert(connection, Snapshot).values(
            job_id=held.job_id,
            step=progress.step,
            key=key,
            style_loss=progress.style_loss,
            content_loss=progress.content_loss,
            width=size[0],
            height=size[1],
        )
        # It is there already when the answer to the commit was lost.
        connection.execute(row.on_conflict_do_nothing())


def save_checkpoint(database: Database, held: Claim, key: str, step: int) -> None:
    """Name the state, in the store already, that the job goes on from when it must.

    A worker that gets so far and vanishes is not the job's fault: its losses are
    forgotten. Raises LeaseLost.
    """
    values = {"checkpoint_key": key, "checkpoint_step": step, "losses": 0}
    _guarded(database, held, values)


def succeed(
    database: Database,
    held: Claim,
    progress: Progress,
    result: Result,
    stop_reason: str = "completed",
) -> None:
    """End the job with its picture. Raises LeaseLost."""
    values = _ended(JobState.SUCCEEDED) | vars(progress) | _result(result)
    values |= {"stop_reason": stop_reason, "eta_seconds": 0.0}
    with database.write() as connection:
        _let_go(connection, held, values)


def fail(
    database: Database,
    held: Claim,
    error: StyleQueueError,
    partial: Result | None = None,
) -> None:
    """End the job with a reason, and its best picture if any. Raises LeaseLost."""
    values = _failed(error) | (_result(partial) if partial else {})
    with database.write() as connection:
        _let_go(connection, held, values)


def send_away(database: Database, held: Claim) -> None:
    """Have another worker go on with the job: this machine cannot. Raises LeaseLost.

    Where there is no other, the same one may try again.
    """
    values = _at_rest(JobState.QUEUED) | _AWAY
    with database.write() as connection:
        _heed(connection, held.job_id, _let_go(connection, held, values))


def hand_back(database: Database, held: Claim) -> None:
    """Let go of a job that is not at its end. Raises LeaseLost.

    What was asked of it is done: it is cancelled, finished or paused. If nothing was,
    since the worker shuts down, it goes on later.
    """
    with database.write() as connection:
        requested = _let_go(connection, held, _at_rest(JobState.QUEUED))
        _heed(connection, held.job_id, requested)


# -- Asked for by people --------------------------------------------------------------


def request(database: Database, job_id: str, what: Request) -> None:
    """Ask a job to stop: a waiting one does at once, a running one within a step.

    `cancel` drops it, an ended one is left alone. `finish` makes its newest picture
    the result, `pause` keeps it for later. Raises NotFound, and Conflict where there
    is nothing to finish or to pause.
    """
    with database.write() as connection:
        job = _state_of(connection, job_id)
        state = JobState(job.state)
        if state.is_terminal:
            if what != "cancel":
                raise Conflict(f"The job is {state}; it has come to its end.")
        elif state != JobState.RUNNING:
            if not _heed(connection, job_id, what):
                raise Conflict("The job has no picture yet that could be its result.")
        elif job.requested != "cancel":
            # Who cancels wants no picture: nothing takes that back.
            here = update(Job).where(
                Job.id == job_id, Job.requested.is_distinct_from(what)
            )
            connection.execute(here.values(requested=what, version=Job.version + 1))


def resume(database: Database, job_id: str) -> None:
    """Put a paused job back into the queue, or take back that it be paused.

    Raises NotFound, and Conflict unless it is paused or about to be.
    """
    with database.write() as connection:
        job = _state_of(connection, job_id)
        here = update(Job).where(Job.id == job_id)
        if job.state == JobState.PAUSED:
            connection.execute(here.values(**_at_rest(JobState.QUEUED)))
        elif job.state == JobState.RUNNING and job.requested == "pause":
            connection.execute(here.values(requested=None, version=Job.version + 1))
        else:
            raise Conflict(f"The job is {job.state}; only a paused one can be resumed.")


# -- Asked for by operators -----------------------------------------------------------


def put_in_front(database: Database, job_id: str) -> None:
    """Make a waiting job the next one. Raises NotFound, and Conflict if none waits."""
    with database.write() as connection:
        waits = Job.state == JobState.QUEUED
        earliest = connection.scalar(select(func.min(Job.turn)).where(waits))
        _change_waiting(connection, job_id, in_front(earliest or 0.0))


def prioritise(database: Database, job_id: str, priority: Priority) -> None:
    """Move a waiting job to another class. Raises NotFound, Conflict unless it waits.

    One that was put in front is there no longer; one that ran already stays ahead.
    """
    with database.write() as connection:
        job = _state_of(connection, job_id)
        values = standing(priority, job.owner)
        values["turn"] = turn_of(Job.created_at, priority)
        if job.attempt:
            values |= ahead()
        _change_waiting(connection, job_id, values)


def _change_waiting(
    connection: Connection, job_id: str, values: dict[str, Any]
) -> None:
    state = _state_of(connection, job_id).state
    if state != JobState.QUEUED:
        raise Conflict(f"The job is {state}; only a waiting one has a turn to change.")
    here = update(Job).where(Job.id == job_id)
    connection.execute(here.values(**values, version=Job.version + 1))


def pause_queue(database: Database, *, paused: bool) -> None:
    """Have no waiting job claimed until this is taken back; running ones go on."""
    with database.write() as connection:
        if paused:
            row = _upsert(connection, Switch).values(name=PAUSED)
            connection.execute(row.on_conflict_do_nothing())
        else:
            connection.execute(delete(Switch).where(Switch.name == PAUSED))


def forget(database: Database, job_id: str) -> None:
    """Delete an ended job; the housekeeper deletes its files.

    Raises NotFound, and Conflict while the job is not terminal.
    """
    with database.write() as connection:
        state = _state_of(connection, job_id).state
        if not JobState(state).is_terminal:
            raise Conflict(f"The job is {state}; cancel it before you delete it.")
        _delete(connection, [job_id])


# -- Housekeeping ---------------------------------------------------------------------


def return_lost(database: Database) -> list[str]:
    """Return jobs whose lease ran out to the queue; give the ids of all touched.

    What was asked of one is done; one whose worker vanished MAX_LOSSES times without a
    newer checkpoint fails, since something about it ends workers, with its newest
    picture.
    """
    with database.write() as connection:
        return _take_back(connection, Job.lease_until < now())


def return_orphans(
    database: Database, worker: str, cause: MachineError | None
) -> list[str]:
    """Return what a worker's process ran when it vanished, as its successor knows.

    So it need not wait for its lease. With a cause that is the machine's fault it is
    sent away, and fails on the last of MAX_FAULTS workers.
    """
    with database.write() as connection:
        return _take_back(connection, Job.worker == worker, cause)


def _take_back(
    connection: Connection,
    whose: ColumnElement[bool],
    cause: MachineError | None = None,
) -> list[str]:
    spent = {"losses": Job.losses + 1} if cause is None else _AWAY
    lost = connection.execute(
        update(Job)
        .where(Job.state == JobState.RUNNING, whose)
        .values(**_at_rest(JobState.QUEUED), **spent)
        .returning(Job.id, Job.requested, Job.losses, Job.faults)
    ).all()
    if lost:
        _count(connection, LOST_LEASES, len(lost))
    for job in lost:
        _charge(connection, job.id)
        error = cause if job.faults >= MAX_FAULTS else None
        if job.losses >= MAX_LOSSES:
            error = WorkerLost(
                f"The worker vanished {MAX_LOSSES} times while it ran this job."
            )
        if error is not None and job.requested != "cancel":
            _give_up(connection, job.id, error)
        else:
            _heed(connection, job.id, job.requested)
    return [job.id for job in lost]


def foretell(database: Database, expected: Sequence[Expected]) -> None:
    """Record when jobs are expected to start, None if they have, and to end."""
    new = update(Job).where(
        Job.id == bindparam("job_id"),
        # One that was claimed meanwhile has no start to wait for.
        Job.state == bindparam("in_state"),
    )
    new = new.values(
        eta_start=bindparam("start"),
        eta_finish=bindparam("finish"),
        version=Job.version + 1,
    )
    # In small transactions: no worker's report shall wait for long.
    for first in range(0, len(expected), 200):
        part = expected[first : first + 200]
        rows = [
            {
                **vars(one),
                "in_state": JobState.RUNNING if one.start is None else JobState.QUEUED,
            }
            for one in part
        ]
        with database.write() as connection:
            connection.execute(new, rows)


def _give_up(connection: Connection, job_id: str, error: MachineError) -> None:
    values = _failed(error)
    newest = _newest_picture(connection, job_id)
    if newest is not None:
        values |= _result(replace(newest, partial=True))
    connection.execute(update(Job).where(Job.id == job_id).values(**values))


def ended_with_checkpoint(database: Database, limit: int = 100) -> list[str]:
    """Return jobs whose checkpoints nobody needs any more."""
    with database.read() as connection:
        return list(
            connection.scalars(
                select(Job.id)
                .where(Job.checkpoint_key.is_not(None), Job.state.in_(TERMINAL))
                .limit(limit)
            )
        )


def forget_checkpoint(database: Database, job_id: str) -> None:
    """Name no checkpoint of an ended job: its files are gone."""
    with database.write() as connection:
        connection.execute(
            update(Job)
            .where(Job.id == job_id, Job.state.in_(TERMINAL))
            .values(checkpoint_key=None, checkpoint_step=None)
        )


def expire(database: Database, *, retention_days: float) -> int:
    """Delete jobs that ended longer ago than `retention_days`; return how many."""
    with database.write() as connection:
        old = connection.scalars(
            select(Job.id)
            .where(
                Job.state.in_(TERMINAL),
                Job.finished_at < now() - retention_days * 86400,
            )
            .limit(100)
            # One that somebody deletes or retries now is not waited for.
            .with_for_update(skip_locked=True)
        ).all()
        _delete(connection, old)
        return len(old)


# -- Inside a transaction -------------------------------------------------------------


def _guarded(database: Database, held: Claim, values: dict[str, Any]) -> str | None:
    with database.write() as connection:
        return _guard(connection, held, values)


def _guard(connection: Connection, held: Claim, values: dict[str, Any]) -> str | None:
    """Update the job if this attempt still runs it, and return what is requested."""
    row = connection.execute(
        update(Job)
        .where(
            Job.id == held.job_id,
            Job.attempt == held.attempt,
            Job.state == JobState.RUNNING,
        )
        .values(**values)
        .returning(Job.requested)
    ).one_or_none()
    if row is None:
        raise LeaseLost(f"job {held.job_id} is no longer run by attempt {held.attempt}")
    requested: str | None = row.requested
    return requested


def _let_go(connection: Connection, held: Claim, values: dict[str, Any]) -> str | None:
    """Update the job so that it no longer runs, and return what was requested."""
    requested = _guard(connection, held, values)
    _charge(connection, held.job_id)
    return requested


def _count(connection: Connection, name: str, more: float) -> None:
    row = _upsert(connection, Counter).values(name=name, value=more)
    connection.execute(
        row.on_conflict_do_update(
            index_elements=[Counter.name],
            set_={"value": Counter.value + row.excluded.value},
        )
    )


def _charge(connection: Connection, job_id: str) -> None:
    """Count what its last attempt took of a worker as its owner's."""
    this = Job.id == job_id
    spent = select(func.coalesce(now() - Job.claimed_at, 0.0)).where(this)
    row = _upsert(connection, Owner).values(
        name=select(Job.owner).where(this).scalar_subquery(),
        used_seconds=spent.scalar_subquery(),
        used_at=now(),
        total_seconds=spent.scalar_subquery(),
    )
    connection.execute(
        row.on_conflict_do_update(
            index_elements=[Owner.name],
            set_={
                "used_seconds": used_seconds() + row.excluded.used_seconds,
                "used_at": now(),
                "total_seconds": Owner.total_seconds + row.excluded.total_seconds,
            },
        )
    )


def _ended(state: JobState) -> dict[str, Any]:
    return {
        "state": state,
        "version": Job.version + 1,
        "finished_at": now(),
        "eta_start": None,
        "eta_finish": None,
        "lease_until": None,
        "worker": None,
        "requested": None,
    }


def _at_rest(state: JobState) -> dict[str, Any]:
    """Return the values of a job that goes on later, before those that never ran."""
    return {
        "state": state,
        "version": Job.version + 1,
        "worker": None,
        "lease_until": None,
        **ahead(),
    }


def _heed(connection: Connection, job_id: str, requested: str | None) -> bool:
    """Do at once to a waiting or paused job what was asked of it, if it can be done.

    One without a picture cannot be finished; it will be with the first that it gets.
    """
    values: dict[str, Any] = {}
    if requested == "cancel":
        values = _ended(JobState.CANCELLED)
    elif requested == "pause":
        values = {"state": JobState.PAUSED, "version": Job.version + 1}
        values |= {"eta_start": None, "eta_finish": None}
    elif requested == "finish":
        newest = _newest_picture(connection, job_id)
        if newest is None:
            return False
        values = _ended(JobState.SUCCEEDED) | _result(newest)
        values |= {"stop_reason": "finished_early", "eta_seconds": 0.0}
    if values:
        here = update(Job).where(Job.id == job_id)
        connection.execute(here.values(**values | {"requested": None}))
    return True


def _newest_picture(connection: Connection, job_id: str) -> Result | None:
    row = connection.execute(
        select(Snapshot.key, Snapshot.width, Snapshot.height)
        .where(Snapshot.job_id == job_id)
        .order_by(Snapshot.step.desc())
        .limit(1)
    ).one_or_none()
    # Snapshots of versions before this one did not say how large they are.
    if row is None or row.width is None:
        return None
    return Result(row.key, row.width, row.height)


def _failed(error: StyleQueueError) -> dict[str, Any]:
    return _ended(JobState.FAILED) | {
        "error_code": error.code,
        # PostgreSQL's text has no NUL.
        "error_message": error.message.replace("\0", "")[:2000],
        "error_fault": error.fault,
    }


def _result(result: Result) -> dict[str, Any]:
    return {f"result_{name}": value for name, value in vars(result).items()}


def _state_of(connection: Connection, job_id: str) -> Any:
    row = connection.execute(
        select(
            *(Job.state, Job.settings, Job.content_sha, Job.requested),
            *(Job.estimate, Job.least_bytes, Job.owner, Job.attempt),
        )
        # PostgreSQL's text has no NUL, nor has any id.
        .where(Job.id == job_id.replace("\0", "?"))
        .with_for_update()
    ).one_or_none()
    if row is None:
        raise NotFound(f"There is no job {job_id[:36]}.")
    return row


def _styles_of(connection: Connection, job_id: str) -> tuple[str, ...]:
    return tuple(
        connection.scalars(
            select(JobStyle.sha256)
            .where(JobStyle.job_id == job_id)
            .order_by(JobStyle.position)
        )
    )


def _delete(connection: Connection, job_ids: Sequence[str]) -> None:
    if not job_ids:
        return
    _touch_pictures(connection, job_ids)
    # What is sent again makes a new job.
    keys = SubmissionKey.job_id.in_(job_ids)
    connection.execute(delete(SubmissionKey).where(keys))
    connection.execute(delete(Snapshot).where(Snapshot.job_id.in_(job_ids)))
    connection.execute(delete(JobStyle).where(JobStyle.job_id.in_(job_ids)))
    connection.execute(delete(Job).where(Job.id.in_(job_ids)))
    trash = [{"prefix": job_prefix(job_id)} for job_id in job_ids]
    connection.execute(insert(Trash), trash)


def _touch_pictures(connection: Connection, job_ids: Sequence[str]) -> None:
    """Start the hour after which unused pictures are deleted anew."""
    used = (
        select(Job.content_sha)
        .where(Job.id.in_(job_ids))
        .union(select(JobStyle.sha256).where(JobStyle.job_id.in_(job_ids)))
    )
    # Locked in order, as by keep_pictures, and by an UPDATE in any.
    locked = connection.scalars(
        select(Picture.sha256)
        .where(Picture.sha256.in_(used))
        .order_by(Picture.sha256)
        .with_for_update()
    ).all()
    here = update(Picture).where(Picture.sha256.in_(locked))
    connection.execute(here.values(used_at=now()))


def _upsert(connection: Connection, table: type[Base]) -> Any:
    """Return an INSERT that may say what to do on a conflict."""
    postgres = connection.dialect.name == "postgresql"
    return (postgresql.insert if postgres else sqlite.insert)(table)
