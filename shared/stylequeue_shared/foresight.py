"""When each waiting job will start and end: the housekeeper foretells it.

The queue is played through: whichever worker is free first takes the job whose turn it
is then, of those that fit it, for as long as the job was estimated to take, corrected
by what jobs took on that worker lately against their own estimates (its pace).
"""

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from sqlalchemy import Connection, select

from stylequeue_shared.database import Database, now
from stylequeue_shared.jobs import ALIVE_SECONDS, Expected
from stylequeue_shared.models import Job, JobState, Worker
from stylequeue_shared.queue_simulation import Queue
from stylequeue_shared.reading import is_paused, queue
from stylequeue_shared.stored_values import LONGEST_SECONDS, finite, json_number

# What was said is not changed for less than this share of what is left, or seconds.
NEWS_SHARE, NEWS_SECONDS = 0.05, 2.0
# A worker that is told to be slower or faster than this is taken for that much.
LEAST_PACE, MOST_PACE = 1e-3, 1e3


@dataclass(frozen=True)
class Able:
    """A worker that takes jobs, and when it will be free."""

    name: str
    free_at: float
    pace: float
    budget: int | None = None


def foretell(database: Database) -> list[Expected]:
    """Return what can be said of running and waiting jobs, and is news.

    A queue that is paused, or that no worker serves, starts nothing: of what waits in
    it nothing is said, and what was is taken back.
    """
    with database.read() as connection:
        moment = connection.scalar(select(now())) or 0.0
        able, running = _workers(connection, moment)
    expected = list(running)
    if not is_paused(database):
        expected += play(queue(database), able)
    with database.read() as connection:
        wanted = select(Job.id, Job.eta_start, Job.eta_finish)
        states = (JobState.QUEUED, JobState.RUNNING)
        said = {
            row.id: (row.eta_start, row.eta_finish)
            for row in connection.execute(wanted.where(Job.state.in_(states)))
        }
    news = [
        one
        for one in expected
        if one.job_id in said and _is_news(one, *said[one.job_id], moment)
    ]
    known = {one.job_id for one in expected}
    return news + [
        Expected(job_id, None, None)
        for job_id, (start, _) in said.items()
        if start is not None and job_id not in known
    ]


def play(waiting: Queue, able: Iterable[Able]) -> list[Expected]:
    """Play the queue through, and return when each job of it starts and ends."""
    free = [(one.free_at, number, one) for number, one in enumerate(able)]
    heapq.heapify(free)
    found = []
    while free:
        at, number, worker = heapq.heappop(free)
        job = waiting.take(worker.budget, worker.pace)
        # A worker that nothing fits any more gets no further job.
        if job is not None:
            ends = at + job.seconds * worker.pace
            found.append(Expected(job.id, at, ends))
            heapq.heappush(free, (ends, number, worker))
    return found


def _workers(
    connection: Connection, moment: float
) -> tuple[list[Able], list[Expected]]:
    """Return the workers that take jobs, and what is expected of those that run."""
    rows = connection.execute(
        select(
            *(Worker.name, Worker.pace, Worker.budget_bytes),
            *(Worker.refuses, Worker.drain),
            *(Job.id, Job.claimed_at, Job.eta_seconds),
            json_number(Job.estimate, "seconds").label("estimate"),
        )
        .outerjoin(Job, (Job.worker == Worker.name) & (Job.state == JobState.RUNNING))
        .where(Worker.seen_at > now() - ALIVE_SECONDS)
        .order_by(Worker.name)
    ).all()
    # One that was just started is taken for what the others are.
    paces = [finite(row.pace, LEAST_PACE, MOST_PACE) for row in rows if row.pace]
    usual = median([pace for pace in paces if pace] or [1.0])
    able, running = [], []
    for row in rows:
        pace = finite(row.pace or None, LEAST_PACE, MOST_PACE) or usual
        free_at = moment
        if row.id is not None:
            left = _left(row.estimate, row.claimed_at, row.eta_seconds, moment, pace)
            if left is None:
                continue
            free_at += left
            running.append(Expected(row.id, None, free_at))
        if row.refuses is None and row.drain is None:
            able.append(Able(row.name, free_at, pace, row.budget_bytes))
    return able, running


def _left(
    estimate: float | None,
    claimed_at: float | None,
    eta_seconds: float | None,
    moment: float,
    pace: float,
) -> float | None:
    """Return the seconds that a running job has left; None if nobody can say."""
    told = finite(eta_seconds, 0.0, LONGEST_SECONDS)
    if told is not None:
        return float(told)
    whole, since = finite(estimate, 0.0, LONGEST_SECONDS), finite(claimed_at)
    if whole is None or since is None:
        return None
    # After the clock was set back the claim may lie ahead.
    return float(max(0.0, whole * pace - max(0.0, moment - since)))


def _is_news(
    one: Expected, start: float | None, finish: float | None, moment: float
) -> bool:
    def differs(new: float | None, said: float | None) -> bool:
        if new is None or said is None:
            return new is not said
        if not math.isfinite(said):
            return True
        return abs(new - said) > max(NEWS_SECONDS, NEWS_SHARE * (new - moment))

    return differs(one.start, start) or differs(one.finish, finish)
