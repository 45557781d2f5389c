"""What a job will take on the workers that are there, before it is accepted."""

from collections.abc import Sequence
from typing import Any

from stylequeue_shared import reading
from stylequeue_shared.database import Database
from stylequeue_shared.errors import InvalidSetting
from stylequeue_shared.estimates import Estimate, Speed, estimate, fits, largest_size
from stylequeue_shared.job_settings import JobSettings
from stylequeue_shared.stored_values import finite

Size = tuple[int, int]


def forecast(
    database: Database, settings: JobSettings, content: Size, styles: Sequence[Size]
) -> dict[str, Any] | None:
    """Return the estimate of the fastest worker that could run it, None if unknown.

    A worker that has not told its budget might hold anything. Raises InvalidSetting
    when workers were seen lately and none of them could hold the job.
    """
    workers = reading.workers(database)
    able = [
        worker
        for worker in workers
        if fits(settings, content, worker.budget_bytes, gpu=bool(worker.gpu))
    ]
    if workers and not able:
        raise _too_large(settings, content, workers)
    found = {
        worker.name: expected
        for worker in able
        if (expected := _on(worker, settings, content, styles))
    }
    if not found:
        return None
    fastest = min(found, key=lambda name: found[name].seconds)
    return {
        "seconds": round(found[fastest].seconds, 1),
        "memory_bytes": found[fastest].memory_bytes,
        "worker": fastest,
    }


def _on(
    worker: Any, settings: JobSettings, content: Size, styles: Sequence[Size]
) -> Estimate | None:
    """Return what the job takes on that worker; None if it has not told its speed."""
    usual, low, moved = (
        finite(one, 1.0) if one else None
        for one in (
            worker.operations_per_second,
            worker.low_operations_per_second,
            worker.bytes_per_second,
        )
    )
    if usual is None or moved is None:
        return None
    speed = Speed(usual, low, moved)
    budget, gpu = worker.budget_bytes, bool(worker.gpu)
    return estimate(settings, content, styles, budget, speed, gpu=gpu)


def _too_large(
    settings: JobSettings, content: Size, workers: Sequence[Any]
) -> InvalidSetting:
    kinds = {(worker.budget_bytes, bool(worker.gpu)) for worker in workers}
    largest = max(
        largest_size(settings, content, budget, gpu=gpu) for budget, gpu in kinds
    )
    allowed = f"at most {largest}" if largest else "no size"
    return InvalidSetting(
        f"image_size: found {settings.image_size}; with this picture and these "
        f"settings {allowed} fits into the memory that the workers here may take",
        field="image_size",
    )
