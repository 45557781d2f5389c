"""What workers, web side and housekeeper say of jobs to each other."""

from dataclasses import dataclass
from typing import Any, Literal

from stylequeue_shared.job_settings import JobSettings

# Workers lost after which the job, not the machines, is to blame.
MAX_LOSSES = 5
# Workers on which a job may fail by the machine's fault.
MAX_FAULTS = 3
# A worker beats every 5 s; after three missed beats it counts as gone.
ALIVE_SECONDS = 15.0
# What may be asked of a job that is not at its end.
Request = Literal["cancel", "finish", "pause"]


@dataclass(frozen=True)
class Claim:
    """A worker's right to run one attempt of a job, and what it needs for it."""

    job_id: str
    attempt: int
    settings: JobSettings
    content_sha: str
    style_shas: tuple[str, ...]
    # What an earlier attempt noted of the job: its memory budget holds for all.
    made_with: dict[str, Any] | None = None
    # The key of the state to go on from.
    checkpoint: str | None = None
    # On how many workers it has failed by the machine's fault.
    faults: int = 0
    # What it was estimated to take when it was submitted.
    estimate: dict[str, Any] | None = None
    # The seconds that it waited for its first start; None if it started before.
    waited: float | None = None


@dataclass(frozen=True)
class Progress:
    """How far an attempt is; losses are weighted, speed is optimisation time only."""

    step: int
    style_loss: float
    content_loss: float
    steps_per_second: float
    eta_seconds: float


@dataclass(frozen=True)
class Expected:
    """When a job will start, None if it has, and when it will end; since 1970.

    Without both, nothing can be said of a job that waits.
    """

    job_id: str
    start: float | None
    finish: float | None

    @property
    def waits(self) -> bool:
        """Whether it is said of a job that waits."""
        return self.start is not None or self.finish is None


@dataclass(frozen=True)
class Result:
    """The final picture in the store."""

    key: str
    width: int
    height: int
    partial: bool = False
