"""The time of a run's steps: of optimisation alone, without what is saved between."""

import time
from collections.abc import Iterator

import torch

from stylequeue_shared.jobs import Progress
from stylequeue_worker.engine.transfer import Step


class Clock:
    """Measures optimisation alone: the pauses for saving pictures do not count."""

    def __init__(self, steps: int) -> None:
        self.step = 0
        self._steps = steps
        self._all = Pace()
        # Of steps of the size that is worked on now.
        self._lately = Pace()
        self._size: torch.Size | None = None

    def next(self, steps: Iterator[Step]) -> Step | None:
        """Return the next step, None after the last, and time it."""
        begun = time.perf_counter()
        step = next(steps, None)
        took = time.perf_counter() - begun
        if step is None:
            return None
        if step.image.shape != self._size:
            self._size, self._lately = step.image.shape, Pace()
        self._all.add(took)
        self._lately.add(took)
        self.step = step.number
        return step

    def progress(self, step: Step) -> Progress:
        """Return how far the job is, at the speed so far."""
        left = self._steps - step.number if step.left is None else step.left
        return Progress(
            step=step.number,
            style_loss=step.style_loss,
            content_loss=step.content_loss,
            steps_per_second=1 / self._all.seconds,
            eta_seconds=left * self._lately.seconds,
        )


class Pace:
    """The mean seconds of a step, the first of them apart.

    That includes reading the styles and warming up.
    """

    def __init__(self) -> None:
        self._count = 0
        self._first = 0.0
        self._rest = 0.0

    def add(self, seconds: float) -> None:
        """Count one step."""
        if self._count:
            self._rest += seconds
        else:
            self._first = seconds
        self._count += 1

    @property
    def seconds(self) -> float:
        """The mean seconds of a step so far."""
        known = self._rest / (self._count - 1) if self._count > 1 else self._first
        return max(known, 1e-6)
