"""Simulate in which order the waiting jobs will be claimed, by the rules of `turns`."""

from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace

from stylequeue_shared.turns import AHEAD


@dataclass(frozen=True, slots=True)
class Waiting:
    """A waiting job, and the seconds it is expected to take."""

    id: str
    line: str
    turn: float
    seconds: float
    least_bytes: int | None = None


# How good a line is: what its owner had, then turn and id of its first job.
_Entry = tuple[float, float, str, str]


class Queue:
    """The waiting jobs, taken one after the other.

    What a job will take is charged to its owner when it is taken. `used` is what each
    owner had lately.

    A worker sees only the jobs that fit it, so what it takes costs no look at others.
    For this the jobs of a line stand in groups by the memory they need, and each
    number of groups that a worker can hold has its own heaps of lines.
    """

    def __init__(self, waiting: Iterable[Waiting], used: Mapping[str, float]) -> None:
        self._used: defaultdict[str, float] = defaultdict(float, used)
        jobs = sorted(waiting, key=lambda one: (one.turn, one.id))
        sizes = {one.least_bytes for one in jobs if one.least_bytes is not None}
        # A worker of at least the first size holds group 1, and so on; group 0 is of
        # jobs that fit anywhere.
        self._sizes = sorted(sizes)
        self._lines: defaultdict[str, dict[int, deque[Waiting]]] = defaultdict(dict)
        for one in jobs:
            groups = self._lines[one.line]
            groups.setdefault(self._group(one), deque()).append(one)
        self._heaps: dict[int, dict[str, list[_Entry]]] = {}

    def __iter__(self) -> Iterator[Waiting]:
        """Take one job after the other."""
        while (one := self.take()) is not None:
            yield one

    def take(self, budget: int | None = None, pace: float = 1.0) -> Waiting | None:
        """Take the job whose turn it is of those that fit, None when none does.

        For a worker of that memory `budget`, None when it holds any job, on which jobs
        take `pace` times what is expected of them.
        """
        groups = len(self._sizes) if budget is None else self._groups(budget)
        if groups not in self._heaps:
            self._heaps[groups] = self._sort_lines(groups)
        best: tuple[float, str, str] | None = None
        for heap in self._heaps[groups].values():
            if (top := self._top(heap, groups)) and (best is None or top[1:] < best):
                best = top[1:]
        return None if best is None else self._remove(best[-1], groups, pace)

    def _groups(self, budget: int) -> int:
        """Return how many of the sizes fit into a budget."""
        return bisect_right(self._sizes, budget)

    def _group(self, one: Waiting) -> int:
        return 0 if one.least_bytes is None else self._groups(one.least_bytes)

    def _sort_lines(self, groups: int) -> dict[str, list[_Entry]]:
        """Return a heap of lines for each class of priority."""
        heaps: defaultdict[str, list[_Entry]] = defaultdict(list)
        for line in self._lines:
            if entry := self._entry(line, groups):
                heaps[line[0]].append(entry)
        for heap in heaps.values():
            heapify(heap)
        return dict(heaps)

    def _top(self, heap: list[_Entry], groups: int) -> _Entry | None:
        """Return the best entry; entries that are out of date are corrected first.

        A line only gets worse: what its owner had grows, and later jobs become first.
        So no line below is better than the first entry that is still right.
        """
        while heap:
            now = self._entry(heap[0][-1], groups)
            if now == heap[0]:
                return now
            if now is None:
                heappop(heap)
            else:
                heapreplace(heap, now)
        return None

    def _entry(self, line: str, groups: int) -> _Entry | None:
        first = self._first(line, groups)
        if first is None:
            return None
        used = 0.0 if line[0] == AHEAD else self._used[line[1:]]
        return used, first.turn, first.id, line

    def _first(self, line: str, groups: int) -> Waiting | None:
        """Return the first job of a line that fits."""
        firsts = (
            jobs[0] for group, jobs in self._lines[line].items() if group <= groups
        )
        return min(firsts, key=lambda one: (one.turn, one.id), default=None)

    def _remove(self, line: str, groups: int, pace: float) -> Waiting:
        first = self._first(line, groups)
        assert first is not None
        group = self._group(first)
        jobs = self._lines[line][group]
        jobs.popleft()
        if not jobs:
            del self._lines[line][group]
        self._used[line[1:]] += first.seconds * pace
        return first
