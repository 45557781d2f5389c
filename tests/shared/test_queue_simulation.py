import random
from typing import Any

import pytest

from stylequeue_shared.foresight import Able, play
from stylequeue_shared.queue_simulation import Queue, Waiting

UNFIT = 10_000


class Counted(Queue):
    """Counts how often it looks for the first job of a line."""

    looks = 0

    def _first(self, *given: Any) -> Waiting | None:
        Counted.looks += 1
        return super()._first(*given)


def jobs(number: int, least_bytes: int, owners: int = 20) -> list[Waiting]:
    return [
        Waiting(f"{least_bytes}-{n}", f"2o{n % owners}", n, 10.0, least_bytes)
        for n in range(number)
    ]


@pytest.fixture(autouse=True)
def _looks() -> None:
    Counted.looks = 0


@pytest.mark.parametrize("budgets", [[100], [100, 200], [100, 200, 300, 400]])
def test_jobs_that_fit_no_worker_cost_no_look(budgets: list[int]) -> None:
    able = [Able(f"w{n}", 0.0, 1.0, budget) for n, budget in enumerate(budgets)]
    waiting = Counted([*jobs(UNFIT, 5000), *jobs(500, 50)], {})
    assert len(play(waiting, able)) == 500
    # Without groups of memory it would look at each of those for each of these.
    assert Counted.looks < 500 * 20


def test_jobs_that_fit_another_worker_only_cost_a_small_one_no_look() -> None:
    able = [Able("small", 0.0, 1.0, 100), Able("large", 0.0, 1000.0, 5000)]
    waiting = Counted([*jobs(2000, 5000), *jobs(2000, 50)], {})
    assert len(play(waiting, able)) == 4000
    assert Counted.looks < 4000 * 20


def test_jobs_are_taken_as_by_a_search_through_all() -> None:
    chance = random.Random(5)
    for _ in range(50):
        waiting = [
            Waiting(
                f"{number}",
                f"{chance.choice('0123')}{chance.choice('abc')}",
                chance.choice([1.0, 2.0, 3.0, -5.0]),
                chance.choice([0.0, 10.0, 70.0]),
                chance.choice([None, 0, 50, 500, 5000]),
            )
            for number in range(30)
        ]
        used = {owner: chance.uniform(0, 50) for owner in "abc"}
        queue, left = Queue(waiting, used), list(waiting)
        while left:
            budget = chance.choice([None, 10, 100, 1000])
            expected = search(left, used, budget)
            found = queue.take(budget, 2.0)
            assert found == expected
            if expected is None:
                if budget is None:
                    break
                continue
            left.remove(expected)
            used[expected.line[1:]] += expected.seconds * 2.0


def search(
    left: list[Waiting], used: dict[str, float], budget: int | None
) -> Waiting | None:
    """Return the job whose turn it is by the rules as they are written."""
    firsts: dict[str, Waiting] = {}
    for one in sorted(left, key=lambda one: (one.turn, one.id)):
        if budget is None or one.least_bytes is None or one.least_bytes <= budget:
            firsts.setdefault(one.line, one)
    named: dict[str, Waiting] = {}

    def rank(one: Waiting) -> tuple[float, float, str]:
        had = 0.0 if one.line[0] == "0" else used[one.line[1:]]
        return had, one.turn, one.id

    for one in sorted(firsts.values(), key=rank):
        named.setdefault(one.line[0], one)
    return min(named.values(), key=lambda one: (one.turn, one.id), default=None)
