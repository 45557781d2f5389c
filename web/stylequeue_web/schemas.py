"""The API's bodies, as its OpenAPI description gives them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, WithJsonSchema

from stylequeue_shared.artefacts import RENDITION_SIZES
from stylequeue_shared.job_settings import JobSettings
from stylequeue_shared.models import JobState
from stylequeue_shared.registry import Drain
from stylequeue_shared.turns import Priority


class JobPath(BaseModel):
    """The job."""

    job_id: str = Field(description="The id that submitting gave.")


class SnapshotPath(JobPath):
    """One snapshot of a job."""

    step: int = Field(ge=0, le=100_000)


class StylePath(JobPath):
    """One style picture of a job."""

    number: int = Field(ge=0, le=7, description="Counted from 0.")


class WorkerPath(BaseModel):
    """A worker."""

    name: str = Field(max_length=200, description="As the list of workers gives it.")


class PriorityBody(BaseModel):
    """Where a job waits."""

    priority: Priority


class DrainQuery(BaseModel):
    """What becomes of the job that the worker runs."""

    running: Drain = Field("finish", description="The job that it runs just now.")


class QueueBody(BaseModel):
    """The queue."""

    paused: bool = Field(description="Whether an operator has no job start.")
    waiting: int


class SubmissionHeader(BaseModel):
    """What makes a submission safe to send again."""

    idempotency_key: str | None = Field(
        None,
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[!-~]+$",
        description="Of the client's choice: for 24 hours the same key with the same "
        "pictures and settings gives the first job again.",
    )


class JobsQuery(BaseModel):
    """Which jobs to list."""

    state: JobState | None = None
    limit: int = Field(24, ge=1, le=100)
    cursor: str | None = Field(None, max_length=200)


class PictureQuery(BaseModel):
    """How a picture is to be sent; `renditions` reads and checks it."""

    size: Annotated[
        str | None, WithJsonSchema({"type": "integer", "enum": list(RENDITION_SIZES)})
    ] = Field(None, description="Longer side in pixels of a smaller JPEG instead.")
    download: Annotated[str | None, WithJsonSchema({"type": "string"})] = Field(
        None, description="With any value: as a file to be saved."
    )


class Progress(BaseModel):
    """How far a job is; losses are weighted."""

    step: int
    steps: int
    style_loss: float | None
    content_loss: float | None
    steps_per_second: float | None = Field(description="Optimisation time only.")
    eta_seconds: float | None


class Estimate(BaseModel):
    """What a job will take, as foreseen when it was submitted; it never changes."""

    seconds: float = Field(description="From its start to its end.")
    memory_bytes: int
    worker: str = Field(description="Of those alive, the fastest that could run it.")


class SnapshotBody(BaseModel):
    """The picture after a step, with the losses evaluated in it."""

    step: int
    style_loss: float
    content_loss: float
    url: str
    preview_url: str


class Result(BaseModel):
    """The final picture."""

    url: str
    preview_url: str
    media_type: str = Field(description="Of `url`; the preview is a JPEG.")
    width: int
    height: int
    partial: bool = Field(description="The best picture of a job that failed.")


class JobError(BaseModel):
    """Why a job failed, and whose fault it was."""

    code: str
    message: str
    fault: Literal["user", "machine", "ours"]


class Links(BaseModel):
    """Absolute paths of what can be done next."""

    self: str
    page: str
    cancel: str
    finish: str
    pause: str
    resume: str
    retry: str


class JobBody(BaseModel):
    """A job. Times are RFC 3339 in UTC, addresses absolute paths."""

    id: str
    state: JobState
    created_at: str
    started_at: str | None
    finished_at: str | None
    settings: JobSettings
    progress: Progress | None = Field(description="Null until the first step.")
    queue_position: int | None = Field(description="1 is next; null unless waiting.")
    eta_start: str | None = Field(
        description="When it is expected to start, while it waits."
    )
    eta_finish: str | None = Field(description="When it is expected to end.")
    priority: Priority
    owner: str | None = Field(description="Whose share of the workers it is.")
    estimate: Estimate | None = Field(
        description="Null when no worker was there to estimate it for."
    )
    retry_of: str | None = Field(description="The job that this one repeats.")
    attempt: int
    requested: Literal["cancel", "finish", "pause"] | None
    stop_reason: Literal["completed", "finished_early", "flat"] | None
    snapshots: list[SnapshotBody]
    result: Result | None
    error: JobError | None
    made_with: dict[str, Any] | None = Field(
        description="Weights, versions and device that the picture depends on."
    )
    links: Links


class JobsBody(BaseModel):
    """A page of jobs, newest first."""

    jobs: list[JobBody]
    next: str | None = Field(description="Address of the next page.")


class WorkerBody(BaseModel):
    """A worker seen lately."""

    name: str
    host: str
    device: str
    memory_bytes: int | None
    budget_bytes: int | None = Field(description="What a job may take of it.")
    refuses: str | None = Field(description="Why it takes no more jobs.")
    drain: Drain | None = Field(description="What an operator told it.")
    job: str | None
    steps_per_second: float | None
    seen_at: str


class WorkersBody(BaseModel):
    """The workers seen lately."""

    workers: list[WorkerBody]


class Problem(BaseModel):
    """A problem detail (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    field: str | None = None
