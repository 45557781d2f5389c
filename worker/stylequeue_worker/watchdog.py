"""Whether work still comes on: a wedged GPU neither fails nor ends."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# No step or band for so many times the longest yet, and at least so many seconds.
TIMES, LEAST_SECONDS = 10.0, 60.0


class Watchdog:
    """Listens to the beats of the work, and knows when they have stopped.

    `clock` gives seconds that only grow; tests pass their own.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._longest = 0.0
        self._last: float | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Expect beats meanwhile."""
        self._last = self._clock()
        try:
            yield
            self.beat()
        finally:
            self._last = None

    def beat(self) -> None:
        """Note that a band or a step is done."""
        now = self._clock()
        if self._last is not None:
            self._longest = max(self._longest, now - self._last)
            self._last = now

    @property
    def has_stopped(self) -> bool:
        """Whether a beat is long overdue."""
        last = self._last
        if last is None:
            return False
        return self._clock() - last > max(LEAST_SECONDS, TIMES * self._longest)
