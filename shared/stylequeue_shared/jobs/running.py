"""What the worker that holds a job writes, guarded by attempt and state."""

from dataclasses import fields
from functools import cache
from typing import Any

from sqlalchemy import Float, bindparam
from sqlalchemy.sql.dml import ReturningUpdate

from stylequeue_shared.database import Database, now, upsert
from stylequeue_shared.errors import StyleQueueError
from stylequeue_shared.jobs.rows import (
    AWAY,
    at_rest,
    ended,
    failed,
    guard,
    guarded,
    heed,
    let_go,
    made,
    tell,
)
from stylequeue_shared.jobs.terms import Claim, Progress, Result
from stylequeue_shared.models import NEXT_VERSION, JobState, Snapshot


def renew(database: Database, held: Claim, *, lease_seconds: float) -> str | None:
    """Renew the lease and return what is requested of the job, such as `cancel`.

    A lease that ran out but was not given away is renewed all the same.
    Raises LeaseLost when the job belongs to another attempt.
    """
    with database.autocommit() as connection:
        return tell(connection, held, _renewal(), {"seconds": lease_seconds})


def report(
    database: Database, held: Claim, progress: Progress, *, lease_seconds: float
) -> str | None:
    """Write progress, renew the lease and return what is requested of the job.

    Raises LeaseLost when the job belongs to another attempt.
    """
    given = {f"new_{name}": value for name, value in vars(progress).items()}
    given["seconds"] = lease_seconds
    with database.autocommit() as connection:
        return tell(connection, held, _report(), given)


# Composed once: each worker makes these several times a second.


@cache
def _renewal() -> ReturningUpdate[Any]:
    return guarded({"lease_until": now() + bindparam("seconds", type_=Float)})


@cache
def _report() -> ReturningUpdate[Any]:
    names = (field.name for field in fields(Progress))
    values: dict[str, Any] = {name: bindparam(f"new_{name}") for name in names}
    values["lease_until"] = now() + bindparam("seconds", type_=Float)
    return guarded({**values, "version": NEXT_VERSION})


def describe(
    database: Database,
    held: Claim,
    made_with: dict[str, Any],
    least_bytes: int | None = None,
) -> None:
    """Record what the picture depends on besides its settings: weights, device.

    From now on it takes `least_bytes` of memory, wherever it goes on.
    """
    values = {"made_with": made_with, "version": NEXT_VERSION}
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
    values = {**vars(progress), "version": NEXT_VERSION}
    with database.write() as connection:
        guard(connection, held, values)
        row = upsert(connection, Snapshot).values(
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
    values = ended(JobState.SUCCEEDED) | vars(progress) | made(result)
    values |= {"stop_reason": stop_reason, "eta_seconds": 0.0}
    with database.write() as connection:
        let_go(connection, held, values)


def fail(
    database: Database,
    held: Claim,
    error: StyleQueueError,
    partial: Result | None = None,
) -> None:
    """End the job with a reason, and its best picture if any. Raises LeaseLost."""
    values = failed(error) | (made(partial) if partial else {})
    with database.write() as connection:
        let_go(connection, held, values)


def send_away(database: Database, held: Claim) -> None:
    """Have another worker go on with the job: this machine cannot. Raises LeaseLost.

    Where there is no other, the same one may try again.
    """
    values = at_rest(JobState.QUEUED) | AWAY
    with database.write() as connection:
        heed(connection, held.job_id, let_go(connection, held, values))


def hand_back(database: Database, held: Claim) -> None:
    """Let go of a job that is not at its end. Raises LeaseLost.

    What was asked of it is done: it is cancelled, finished or paused. If nothing was,
    since the worker shuts down, it goes on later.
    """
    with database.write() as connection:
        requested = let_go(connection, held, at_rest(JobState.QUEUED))
        heed(connection, held.job_id, requested)


def _guarded(database: Database, held: Claim, values: dict[str, Any]) -> str | None:
    with database.write() as connection:
        return guard(connection, held, values)
