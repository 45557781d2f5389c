"""What a worker counts of its life, for Prometheus and for estimates of its pace."""

from collections import deque
from statistics import median

# So many jobs' paces make a worker's.
LATELY = 5


class Tally:
    """Counts of one worker since its start; seconds are sums."""

    def __init__(self) -> None:
        self.starts = 0
        self.start_seconds = 0.0
        self.resumes = 0
        self.checkpoints = 0
        self.checkpoint_seconds = 0.0
        self.out_of_memory = 0
        self._paces: deque[float] = deque(maxlen=LATELY)

    def add_pace(self, took: float, expected: float) -> None:
        """Count a whole job, or what it had left, that took so many seconds."""
        if expected > 0:
            self._paces.append(took / expected)

    @property
    def pace(self) -> float | None:
        """How long jobs took lately by their own estimates; None before the first."""
        return median(self._paces) if self._paces else None

    def counts(self) -> dict[str, float]:
        """Return all counts by name."""
        return {name: n for name, n in vars(self).items() if not name.startswith("_")}
