"""One claimed attempt of a job, from its pictures to its end."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import structlog
import torch
from PIL import Image

from stylequeue_shared import jobs
from stylequeue_shared.artefacts import original_key
from stylequeue_shared.database import OUTAGE, Database
from stylequeue_shared.decoding import decode
from stylequeue_shared.errors import (
    BadState,
    DeviceFailed,
    LeaseLost,
    MachineError,
    NotFound,
    OurError,
    OutOfMemory,
    StyleQueueError,
)
from stylequeue_shared.estimates import planned_bytes
from stylequeue_shared.job_settings import JobSettings, style_fields
from stylequeue_shared.plans import Plan
from stylequeue_shared.store import Store
from stylequeue_worker.beside import Beside, host_copy
from stylequeue_worker.checkpoints import Checkpoints
from stylequeue_worker.clock import Clock
from stylequeue_worker.draining import CHECKPOINT_SECONDS, LEAVE_SECONDS, Draining
from stylequeue_worker.engine.state import State
from stylequeue_worker.engine.transfer import (
    Step,
    is_of_the_device,
    ran_out_of_memory,
)
from stylequeue_worker.gallery import Gallery
from stylequeue_worker.lease import Lease
from stylequeue_worker.patience import Interrupted, Patience
from stylequeue_worker.tally import Tally

LAND_PAUSE_SECONDS = 5.0

log = structlog.get_logger()

End = Callable[[Database, jobs.Claim], None]


class Painter(Protocol):
    """What the runner needs of the engine; tests give it a small one."""

    made_with: Mapping[str, Any]
    # Bytes of memory that a job may take; None: unknown.
    budget: int | None

    @property
    def on_gpu(self) -> bool:
        """Whether steps leave the processor free for other work."""

    def paint(
        self,
        content: Image.Image,
        styles: Sequence[Image.Image],
        settings: JobSettings,
        budget: int | None = None,
        state: State | None = None,
        at_border: Callable[[], None] = ...,
    ) -> Iterator[Step]:
        """Yield a step after each update of the picture, from a state on if given.

        `at_border` is called within steps; what it raises comes out.
        """

    def recover(self) -> None:
        """Let go of what a failed job may have left behind."""


class Attempt:
    """One claimed attempt of a job."""

    def __init__(
        self,
        held: jobs.Claim,
        lease: Lease,
        store: Store,
        painter: Painter,
        draining: Draining,
        tally: Tally,
    ) -> None:
        self._began = time.monotonic()
        self._tally = tally
        self._held = held
        self._settings = held.settings
        self._lease = lease
        self._patience = Patience(lease, draining)
        self._store = store
        self._painter = painter
        self._draining = draining
        self._clock = Clock(held.settings.steps)
        self._checkpoints = Checkpoints(held, lease, store, tally)
        self._newest: tuple[Step, jobs.Progress, Image.Image] | None = None
        # Fixed at the first claim: the picture depends on it.
        earlier = held.made_with or {}
        self._budget: int | None = earlier.get("memory_bytes", painter.budget)
        self._made_with = {**painter.made_with, "memory_bytes": self._budget}
        self._gallery = Gallery(held, lease, store, self._patience, self._made_with)
        self._plan: Plan | None = None
        self._size: torch.Size | None = None
        self._resumed_at = 0
        self._least_bytes: int | None = None
        # The error, if it was the machine's fault that the job failed.
        self.fault: StyleQueueError | None = None

    def run(self) -> None:
        """Paint, and end the job one way or another. Raises LeaseLost."""
        try:
            with Beside(in_thread=self._painter.on_gpu) as beside:
                event, end = self._paint(beside)
                beside.wait()
        except LeaseLost:
            raise
        except Interrupted:
            # Before the first step: there is nothing to keep.
            event, end = "job_handed_back", jobs.hand_back
        except StyleQueueError as error:
            event, end = self._failed(error)
        except Exception as error:
            event, end = self._failed(_explained(error))
        self._land(event, end)

    def _paint(self, beside: Beside) -> tuple[str, End]:
        """Return how the job ends, and the change that says so."""
        keep_alpha = self._settings.keep_alpha
        held = self._held
        content = self._decode(held.content_sha, "content", keep_alpha=keep_alpha)
        fields = style_fields(len(held.style_shas))
        styles = list(map(self._decode, held.style_shas, fields))
        gpu = self._painter.on_gpu
        self._least_bytes = planned_bytes(
            self._settings, content.size, self._budget, gpu=gpu
        )
        self._describe()
        # Here, since a store that hangs is not the watchdog's business.
        state = self._patience.read(self._checkpoints.load)
        steps = self._steps(content, styles, state)
        try:
            while (step := self._next(steps)) is not None:
                self._note(step)
                progress = self._clock.progress(step)
                self._newest = step, progress, content
                self._lease.report(progress)
                if step.stop_reason is not None:
                    beside.wait()
                    return self._finish(step, progress, content, step.stop_reason)
                # First, since a job that goes on later goes on after this step.
                if step.number % self._settings.snapshot_every == 0:
                    image = host_copy(step.image)
                    add = self._gallery.add_snapshot
                    beside.do(partial(add, image, progress, content))
                self._heed()
                if self._checkpoints.is_due:
                    beside.do(self._checkpoints.saving(step.state()))
        except Interrupted:
            beside.wait()
            return self._leave()
        raise OurError(f"The engine ended before step {self._settings.steps}.")

    def _steps(
        self,
        content: Image.Image,
        styles: Sequence[Image.Image],
        state: State | None,
    ) -> Iterator[Step]:
        """Yield the steps from the state on, or all of them."""
        paint = partial(self._painter.paint, content, styles, self._settings)
        paint = partial(paint, budget=self._budget, at_border=self._at_border)
        if state is not None:
            self._resumed_at = state.step
            try:
                yield from paint(state=state)
                return
            except BadState as error:
                log.warning("checkpoint_not_usable", error=error.message)
        yield from paint()

    def _next(self, steps: Iterator[Step]) -> Step | None:
        with self._lease.watchdog.watching():
            return self._clock.next(steps)

    def _at_border(self) -> None:
        self._lease.watchdog.beat()
        self._heed()

    def _heed(self) -> None:
        """Raise Interrupted when the job is to stop here, LeaseLost when it is gone."""
        self._lease.check()
        requested = self._lease.requested
        # One that is to be finished needs a picture first.
        is_ready = requested != "finish" or self._newest is not None
        if self._draining.started or (requested is not None and is_ready):
            raise Interrupted

    def _leave(self) -> tuple[str, End]:
        """Do what was asked of the job; or hand it back, for the worker shuts down."""
        requested = self._lease.requested
        if self._newest is not None and requested == "finish":
            return self._finish(*self._newest, "finished_early")
        if self._newest is not None and requested != "cancel":
            self._save_last(self._newest[0])
        return "job_handed_back", jobs.hand_back

    def _save_last(self, step: Step) -> None:
        """Save where the job stands, if there is the time for it."""
        try:
            state = step.state()
        except BadState as error:
            log.warning("checkpoint_not_taken", error=error.message)
            return
        for _ in self._patience.tries():
            seconds = self._checkpoints.seconds_for(state)
            late = self._draining.seconds + seconds > CHECKPOINT_SECONDS
            if self._draining.started and late:
                log.warning("checkpoint_takes_too_long", seconds=round(seconds, 1))
                return
            if self._checkpoints.save(state):
                return

    def _decode(
        self, sha256: str, field: str, *, keep_alpha: bool = False
    ) -> Image.Image:
        """Decode an upload in a child process, as the web server did to check it."""

        def read() -> Image.Image:
            with self._store.local(original_key(sha256)) as path:
                return decode(path, field=field, keep_alpha=keep_alpha)

        try:
            return self._patience.read(read)
        except NotFound as error:
            raise MachineError("A picture of this job is missing here.") from error

    def _note(self, step: Step) -> None:
        """Say in the job how its memory is spent, whenever that changes."""
        plan, same_size = step.plan, step.image.shape == self._size
        self._size = step.image.shape
        if plan is None or plan == self._plan:
            return
        if self._plan is not None:
            # At a new scale, or because memory ran out.
            self._tally.out_of_memory += same_size
            log.info("plan_changed", before=vars(self._plan), after=vars(plan))
        self._plan = plan
        self._made_with["plan"] = vars(plan)
        self._describe()

    def _describe(self) -> None:
        try:
            made_with = dict(self._made_with)
            self._lease.write(
                partial(
                    jobs.describe, made_with=made_with, least_bytes=self._least_bytes
                )
            )
        except OUTAGE as error:
            log.warning("description_not_written", error=str(error))

    def _finish(
        self, step: Step, progress: jobs.Progress, content: Image.Image, reason: str
    ) -> tuple[str, End]:
        result = self._gallery.store_result(step.image, content)
        if result is None:
            return "job_handed_back", jobs.hand_back
        if step.number % self._settings.snapshot_every == 0:
            self._gallery.add_last_snapshot(step.image, progress, content, result)
        if reason == "completed" and self._held.estimate:
            share = 1 - self._resumed_at / self._settings.steps
            expected = share * self._held.estimate["seconds"]
            self._tally.add_pace(time.monotonic() - self._began, expected)
        return "job_succeeded", partial(
            jobs.succeed, progress=progress, result=result, stop_reason=reason
        )

    def _failed(self, error: StyleQueueError) -> tuple[str, End]:
        if isinstance(error.__cause__, Exception):
            self._tally.out_of_memory += ran_out_of_memory(error.__cause__)
        if not isinstance(error, DeviceFailed):
            # That would fail, too.
            self._painter.recover()
        log.error("job_fails", code=error.code, exc_info=error.__cause__ or error)
        if error.fault == "machine":
            self.fault = error
            if self._held.faults + 1 < jobs.MAX_FAULTS:
                return "job_sent_away", jobs.send_away
        return "job_failed", partial(jobs.fail, error=error, partial=self._partial())

    def _partial(self) -> jobs.Result | None:
        """Store the best picture of a job that fails, if there is one."""
        if self._newest is None:
            return None
        step, _, content = self._newest
        image = step.image if step.best is None else step.best
        return self._gallery.store_partial(image, content)

    def _land(self, event: str, end: End) -> None:
        """Write the end of the job, however long the database is away."""
        while True:
            try:
                self._lease.end(end)
                log.info(event, step=self._clock.step)
                return
            except OUTAGE as error:
                log.warning("end_not_written", end=event, error=str(error))
            if self._draining.seconds > LEAVE_SECONDS:
                raise MachineError("shut down before the job's end was written")
            time.sleep(0.5 if self._draining.started else LAND_PAUSE_SECONDS)


def _explained(cause: Exception) -> StyleQueueError:
    """Say what we can of an unforeseen error: its text may hold paths or secrets."""
    error: StyleQueueError
    if ran_out_of_memory(cause):
        error = OutOfMemory.of_the_worker()
    elif is_of_the_device(cause):
        error = DeviceFailed("The worker's GPU failed.")
    else:
        error = OurError(
            "Something went wrong on our side; the worker's log has the details."
        )
    error.__cause__ = cause
    return error
