"""Whose turn it is among the jobs that wait.

Jobs wait in lines, one for each class of priority and each owner. Each class names the
job it would run: the first in the line of the owner whose jobs had least of the
workers' time lately, with what those that run now are expected to take. Of these few
jobs the one with the earliest turn is next. Its turn is when it was submitted, less the
head start of its class: so `high` is served before `normal`, and yet no stream of
`high` jobs can keep a `normal` one from ever running.

Before all that come jobs that were lost or handed back by their worker, and those that
an operator put in front.

The database finds the job by one index, in a time that grows with the lines and not
with what waits in them.
"""

from collections.abc import Mapping
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, Subquery, case, func, select, union_all

from stylequeue_shared.database import now
from stylequeue_shared.models import Job, JobState, Owner
from stylequeue_shared.stored_values import between, seconds_of, time_of

Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")
# A normal job that has waited for a day is served before a high one that comes now.
HEAD_START_SECONDS: Mapping[str, float] = {
    "high": 86400.0,
    "normal": 0.0,
    "low": -86400.0,
}
# By how many seconds jobs that ran are before those that never did: centuries.
AHEAD_SECONDS = 1e10
# What an owner's jobs took of the workers counts by half after so much time.
HALF_LIFE_SECONDS = 3600.0
LN_2 = 0.6931471805599453
# After so many half-lives nothing that counts is left: a millionth of a millionth.
MOST_HALF_LIVES = 40
# What an owner can have had of the workers lately, whatever its row says.
MOST_USED_SECONDS = 1e9
# Less than this counts as nothing.
LEAST_USED_SECONDS = 1e-6
# An owner's total is bounded, too.
MOST_TOTAL_SECONDS = 1e15
# The class of jobs that are before all classes.
AHEAD = "0"


def standing(priority: str, owner: str) -> dict[str, Any]:
    """Return the values of a job that is new in the queue, or moved to that class."""
    return {
        "priority": priority,
        "owner": owner,
        "line": f"{1 + PRIORITIES.index(priority)}{owner}",
    }


def turn_of(submitted: Any, priority: str) -> Any:
    """Return the turn of a job that was submitted at that time."""
    return submitted - HEAD_START_SECONDS[priority]


def ahead() -> dict[str, Any]:
    """Return the values of a job that its worker lost: it is before all others."""
    return {"line": AHEAD + Job.owner, "turn": Job.created_at - AHEAD_SECONDS}


def in_front(earliest: float) -> dict[str, Any]:
    """Return the values of a job that is next, when that is the earliest turn."""
    turn = min(earliest, -AHEAD_SECONDS) - 1
    return {"line": AHEAD + Job.owner, "turn": turn}


def used_seconds() -> ColumnElement[float]:
    """Return what an owner's ended attempts took of the workers lately, as SQL.

    A use that lies ahead, since the clock was set back, counts as one of just now.
    """
    # PostgreSQL raises when exp() becomes too small, SQLite when it becomes too large.
    age = between(
        now() - time_of(Owner.used_at), 0.0, MOST_HALF_LIVES * HALF_LIFE_SECONDS
    )
    # PostgreSQL also raises when a product becomes too small.
    used = case(
        (Owner.used_seconds < LEAST_USED_SECONDS, 0.0),
        else_=between(Owner.used_seconds, 0.0, MOST_USED_SECONDS),
    )
    return used * func.exp(-LN_2 / HALF_LIFE_SECONDS * age)


def spent_seconds(until: ColumnElement[float]) -> ColumnElement[float]:
    """Return how long a job has run at that time since its claim, as SQL."""
    return seconds_of(until - time_of(func.coalesce(Job.claimed_at, until)))


def use() -> Subquery:
    """Return what each `owner` had of the workers lately, in `seconds`, as SQL.

    A job that runs counts with all that it is expected to take: else an owner's jobs
    would be given to all workers that are free at once.
    """
    ends = case((Job.eta_finish > now(), time_of(Job.eta_finish)), else_=now())
    running = select(Job.owner, spent_seconds(ends))
    parts = union_all(
        select(Owner.name.label("owner"), used_seconds().label("seconds")),
        running.where(Job.state == JobState.RUNNING),
    ).subquery()
    return (
        select(parts.c.owner, func.sum(parts.c.seconds).label("seconds"))
        .group_by(parts.c.owner)
        .subquery()
    )


def next_job(*suits: ColumnElement[bool]) -> Select[str]:
    """Return the SELECT of the id of the job whose turn it is, of those that suit."""
    waits = Job.state == JobState.QUEUED
    # One look into the index for each line, however many jobs wait in it.
    lines = select(func.min(Job.line).label("line")).where(waits).cte(recursive=True)
    following = select(func.min(Job.line)).where(waits, Job.line > lines.c.line)
    lines = lines.union_all(
        select(following.scalar_subquery()).where(lines.c.line.is_not(None))
    )
    first = (
        select(Job.id)
        .where(waits, Job.line == lines.c.line, *suits)
        .order_by(Job.turn, Job.id)
        .limit(1)
    )
    heads = (
        select(first.scalar_subquery().label("id"))
        .where(lines.c.line.is_not(None))
        .cte()
    )
    used = use()
    of_class: ColumnElement[str] = func.substr(Job.line, 1, 1)
    named = (
        select(
            *(Job.id, Job.turn),
            func.row_number()
            .over(
                partition_by=of_class,
                order_by=[
                    case(
                        (of_class == AHEAD, 0.0),
                        else_=func.coalesce(used.c.seconds, 0.0),
                    ),
                    *(Job.turn, Job.id),
                ],
            )
            .label("place"),
        )
        .join(heads, heads.c.id == Job.id)
        .outerjoin(used, used.c.owner == Job.owner)
        .subquery()
    )
    return (
        select(named.c.id)
        .where(named.c.place == 1)
        .order_by(named.c.turn, named.c.id)
        .limit(1)
    )
