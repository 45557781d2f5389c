"""Whose turn it is among the jobs that wait.

Jobs wait in lines, one for each class of priority and each owner. Each class names the
job it would run: the first in the line of the owner whose jobs had least of the
workers' time lately, with what those that run now are expected to take. Of these few
jobs the one with the earliest turn is next. Its turn is when it was submitted, less the
head start of its class: so `high` is served before `normal`, and yet no stream of
`high` jobs can keep a `normal` one from ever running.

Before all that come jobs that ran already, and those that an operator put in front.

The database finds the job by one index, in a time that grows with the lines and not
with what waits in them.
"""

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, Subquery, case, func, select, union_all

from stylequeue_shared.database import now
from stylequeue_shared.models import Job, JobState, Owner

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
    """Return the values of a job that ran already: before all that never did."""
    return {"line": AHEAD + Job.owner, "turn": Job.created_at - AHEAD_SECONDS}


def in_front(earliest: float) -> dict[str, Any]:
    """Return the values of a job that is next, when that is the earliest turn."""
    turn = min(earliest, -AHEAD_SECONDS) - 1
    return {"line": AHEAD + Job.owner, "turn": turn}


def used_seconds() -> ColumnElement[float]:
    """Return what an owner's ended attempts took of the workers lately, as SQL."""
    age = now() - Owner.used_at
    return Owner.used_seconds * func.exp(-LN_2 / HALF_LIFE_SECONDS * age)


def use() -> Subquery:
    """Return what each `owner` had of the workers lately, in `seconds`, as SQL.

    A job that runs counts with all that it is expected to take: else an owner's jobs
    would be given to all workers that are free at once.
    """
    ends = case((Job.eta_finish > now(), Job.eta_finish), else_=now())
    running = select(Job.owner, ends - Job.claimed_at)
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


@dataclass(frozen=True, slots=True)
class Waiting:
    """A waiting job, and the seconds it is expected to take."""

    id: str
    line: str
    turn: float
    seconds: float
    least_bytes: int | None = None


class Queue:
    """Foretells in which order the waiting jobs will be claimed.

    By the rules of `next_job`, where what a job will take is charged to its owner when
    it is claimed. `used` is what each owner had lately.
    """

    def __init__(self, waiting: Iterable[Waiting], used: Mapping[str, float]) -> None:
        self._used: defaultdict[str, float] = defaultdict(float, used)
        self._lines: defaultdict[str, deque[Waiting]] = defaultdict(deque)
        for one in sorted(waiting, key=lambda one: (one.turn, one.id)):
            self._lines[one.line].append(one)
        # By class, the lines by what their owners had; an entry may be out of date.
        self._classes: defaultdict[str, list[tuple[float, float, str, str]]]
        self._classes = defaultdict(list)
        for line in self._lines:
            self._push(line)

    def __iter__(self) -> Iterator[Waiting]:
        """Take one job after the other."""
        while (one := self.take()) is not None:
            yield one

    def take(
        self, fits: Callable[[Waiting], bool] = lambda one: True, pace: float = 1.0
    ) -> Waiting | None:
        """Take the job whose turn it is of those that fit, None when none does.

        For a worker on which jobs take `pace` times what is expected of them.
        """
        passed = []
        while (one := self._pop()) is not None and not fits(one):
            passed.append(one)
        if one is not None:
            self._used[one.line[1:]] += one.seconds * pace
        # The others keep their places.
        for other in reversed(passed):
            self._lines[other.line].appendleft(other)
            self._push(other.line)
        return one

    def _pop(self) -> Waiting | None:
        tops = [self._lines[top[-1]][0] for top in map(self._top, self._classes) if top]
        if not tops:
            return None
        one = min(tops, key=lambda one: (one.turn, one.id))
        self._lines[one.line].popleft()
        self._push(one.line)
        return one

    def _push(self, line: str) -> None:
        if jobs := self._lines[line]:
            head = jobs[0]
            entry = (self._key(line), head.turn, head.id, line)
            heapq.heappush(self._classes[line[0]], entry)

    def _top(self, of_class: str) -> tuple[float, float, str, str] | None:
        """Return the best entry of a class; those above it are brought up to date."""
        heap = self._classes[of_class]
        while heap:
            used, _, job_id, line = heap[0]
            first = self._lines[line][0].id if self._lines[line] else None
            if job_id == first and used == self._key(line):
                return heap[0]
            heapq.heappop(heap)
            if job_id == first:
                # What an owner had only grows: nothing below is better than it says.
                self._push(line)
        return None

    def _key(self, line: str) -> float:
        return 0.0 if line[0] == AHEAD else self._used[line[1:]]
