"""What a chore of the housekeeper is, and for how long it may run at a time."""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

# A chore with much to do gives way to the others after this time.
BUDGET_SECONDS = 5.0

Item = TypeVar("Item")


class Turn:
    """One run of a chore, which ends early when `may_go_on` says no."""

    def __init__(self, may_go_on: Callable[[], bool]) -> None:
        self._may_go_on = may_go_on
        self.was_cut_short = False

    def goes_on(self) -> bool:
        """Whether the chore may take the next item; else it goes on in its next run."""
        if not self._may_go_on():
            self.was_cut_short = True
        return not self.was_cut_short

    def each(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items until the turn is over."""
        for item in items:
            if not self.goes_on():
                return
            yield item


@dataclass
class Chore:
    """Something to do every `every` seconds, or whenever the housekeeper looks."""

    name: str
    do: Callable[[Turn], object]
    every: float = 0.0
    # The time of the housekeeper's clock from which on it is to be done again.
    due_at: float = 0.0


@dataclass(frozen=True)
class Budget:
    """Decides whether a turn that began now may go on."""

    clock: Callable[[], float]
    is_active: Callable[[], bool]
    stop: threading.Event

    def turn(self) -> Turn:
        """Begin a turn."""
        until = self.clock() + BUDGET_SECONDS
        return Turn(
            lambda: self.clock() < until and self.is_active() and not self.stop.is_set()
        )
