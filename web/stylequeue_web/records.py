"""Jobs as clients see them: the JSON of the API, which the pages show, too."""

import base64
import binascii
import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version as version_of
from typing import Any, NamedTuple

from flask import request

from stylequeue_shared import free_space, jobs, reading
from stylequeue_shared.artefacts import PREVIEW_SIZE, media_type
from stylequeue_shared.errors import InvalidSetting, NotFound, UnreadableRow
from stylequeue_shared.models import JobState
from stylequeue_shared.once import Once, once
from stylequeue_shared.skipped_rows import note_skipped
from stylequeue_shared.stored_values import LAST_TIME, estimate_of, finite, object_of
from stylequeue_web.services import Services

PREFIX = "/api/v1"
# The next release may have more to say of the same job.
RELEASE = version_of("stylequeue")
# What may be asked of a job, each by a POST to an address of its own.
CALLS = ("cancel", "finish", "pause", "resume", "retry")
JOB_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Version(NamedTuple):
    """What changes whenever the body of a job does."""

    version: int
    state: str
    position: int | None

    @property
    def etag(self) -> str:
        """The ETag, without its quotes."""
        waiting = "" if self.position is None else f".{self.position}"
        return f"{RELEASE}-{self.version}{waiting}"


def address(path: str) -> str:
    """Return the absolute path of a job's address, such as `/{id}/content`."""
    return f"{request.script_root}{PREFIX}/jobs{path}"


def check_id(job_id: str) -> None:
    """Raise NotFound for what is no id: databases choke on some of it, such as NUL."""
    if not JOB_ID.fullmatch(job_id):
        raise NotFound(f"There is no job {job_id[:36]!r}.")


def version(services: Services, job_id: str) -> Version:
    """Read what the ETag is made of: one row. Raises NotFound."""
    number, state = reading.version(services.database, job_id)
    return Version(number, state, _position(services, job_id, state))


def job(services: Services, job_id: str) -> dict[str, Any]:
    """Return the body of one job. Raises NotFound."""
    return job_and_version(services, job_id)[0]


def job_and_version(services: Services, job_id: str) -> tuple[dict[str, Any], Version]:
    """Return the body of a job and the version it was read at.

    Raises NotFound, and UnreadableRow.
    """
    row, snapshots = reading.job(services.database, job_id)
    position = _position(services, job_id, row.state)
    body = _body(services, row, snapshots, position)
    return body, Version(row.version, row.state, position)


def page(
    services: Services, *, state: str | None, limit: int, cursor: str | None
) -> tuple[list[dict[str, Any]], str | None]:
    """Return the bodies of `limit` jobs, newest first, and the cursor of the next page.

    A job whose row cannot be read is left out. Raises InvalidSetting for a cursor that
    is not one of ours.
    """
    before = None if cursor is None else _before(cursor)
    found = reading.page(services.database, state=state, limit=limit + 1, before=before)
    bodies = []
    for row, snapshots in found[:limit]:
        try:
            position = _position(services, row.id, row.state)
            bodies.append(_body(services, row, snapshots, position))
        except UnreadableRow as error:
            note_skipped(services.database, "jobs", row.id, error)
    return bodies, _cursor(found[:limit]) if len(found) > limit else None


def styles(services: Services, job_id: str) -> int:
    """Return how many style pictures a job has."""
    return reading.style_count(services.database, job_id)


def retry(services: Services, job_id: str, key: str | None = None) -> tuple[str, bool]:
    """Record the job once more, as a new one, and wake a worker.

    Return the new id, and whether it is new: a `key` that retried this job before
    gives the same one again. Raises Conflict for a key of something else,
    NotFound, QueueFull and DiskFull.
    """
    if key is None:
        return _retry(services, job_id, None), True
    digest = hashlib.sha256(f"retry {job_id}".encode()).hexdigest()
    with once(services.database, key) as held:
        first = held.repeats(digest)
        if first is not None:
            return first, False
        return _retry(services, job_id, (held, digest)), True


def _retry(services: Services, job_id: str, repeats: tuple[Once, str] | None) -> str:
    quota = services.settings.store_quota_bytes
    free_space.check(services.database, services.store, quota)
    limit = services.settings.max_waiting
    again = jobs.retry(services.database, job_id, max_waiting=limit, repeats=repeats)
    services.bell.ring(again)
    return again


def resume(services: Services, job_id: str) -> None:
    """Have a paused job wait for its turn again, and wake a worker."""
    limit = services.settings.max_waiting
    jobs.resume(services.database, job_id, max_waiting=limit)
    services.bell.ring(job_id)


def queue(services: Services) -> dict[str, Any]:
    """Return whether the queue is paused, and how many jobs wait."""
    waiting = reading.counts(services.database).get(JobState.QUEUED, 0)
    return {"paused": reading.is_paused(services.database), "waiting": waiting}


def resume_queue(services: Services) -> None:
    """Have waiting jobs start again; the housekeeper wakes the workers."""
    jobs.pause_queue(services.database, paused=False)


def workers(services: Services) -> list[dict[str, Any]]:
    """Return the workers seen lately, with the job that each runs."""
    return [
        {
            "name": row.name,
            "host": row.host,
            "device": row.device,
            "memory_bytes": row.memory_bytes,
            "budget_bytes": row.budget_bytes,
            "refuses": row.refuses,
            "drain": row.drain,
            "job": row.job,
            "steps_per_second": finite(row.steps_per_second),
            "seen_at": _time(row.seen_at),
        }
        for row in reading.workers(services.database)
    ]


def _body(
    services: Services, row: Any, snapshots: Sequence[Any], position: int | None
) -> dict[str, Any]:
    """Return the JSON of a job. Raises UnreadableRow."""
    here = address(f"/{row.id}")
    settings = object_of(row.settings)
    # Those of another release may differ from today's; they are shown as they are.
    if settings is None or finite(settings.get("steps")) is None:
        raise UnreadableRow(f"The settings of job {row.id} cannot be read.")
    return {
        "id": row.id,
        "state": row.state,
        "created_at": _time(row.created_at),
        "started_at": _time(row.started_at),
        "finished_at": _time(row.finished_at),
        "settings": settings,
        "progress": _progress(row),
        "queue_position": position,
        "priority": row.priority,
        "owner": row.owner or None,
        "eta_start": _time(row.eta_start),
        "eta_finish": _time(row.eta_finish),
        "estimate": estimate_of(row.estimate),
        "retry_of": row.retry_of,
        "attempt": row.attempt,
        "requested": row.requested,
        "stop_reason": row.stop_reason,
        "snapshots": [
            {
                "step": snapshot.step,
                "style_loss": snapshot.style_loss,
                "content_loss": snapshot.content_loss,
                **_addresses(f"{here}/snapshots/{snapshot.step}"),
            }
            for snapshot in _readable(services, snapshots)
        ],
        "result": _result(row, here),
        "error": row.error_code
        and {
            "code": row.error_code,
            "message": row.error_message,
            "fault": row.error_fault,
        },
        "made_with": object_of(row.made_with),
        "links": {
            "self": here,
            "page": f"{request.script_root}/jobs/{row.id}",
            **{name: f"{here}/{name}" for name in CALLS},
        },
    }


def _progress(row: Any) -> dict[str, Any] | None:
    if row.step is None:
        return None
    return {
        "step": row.step,
        "steps": row.settings["steps"],
        "style_loss": finite(row.style_loss),
        "content_loss": finite(row.content_loss),
        "steps_per_second": finite(row.steps_per_second),
        "eta_seconds": finite(row.eta_seconds),
    }


def _readable(services: Services, snapshots: Sequence[Any]) -> Iterator[Any]:
    """Give the snapshots whose losses are numbers."""
    for one in snapshots:
        if None not in (finite(one.style_loss), finite(one.content_loss)):
            yield one
        else:
            name = f"{one.job_id} {one.step}"
            note_skipped(services.database, "snapshots", name, "a loss is no number")


def _result(row: Any, here: str) -> dict[str, Any] | None:
    if row.result_key is None:
        return None
    return {
        **_addresses(f"{here}/result"),
        "media_type": media_type(row.result_key),
        "width": row.result_width,
        "height": row.result_height,
        "partial": row.result_partial,
    }


def _addresses(url: str) -> dict[str, str]:
    return {"url": url, "preview_url": f"{url}?size={PREVIEW_SIZE}"}


def _time(seconds: float | None) -> str | None:
    """Write a time of the database as RFC 3339 in UTC; absurd ones as the nearest."""
    if seconds is None:
        return None
    moment = datetime.fromtimestamp(finite(seconds, 0.0, LAST_TIME) or 0.0, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _position(services: Services, job_id: str, state: str) -> int | None:
    return services.positions.of(job_id) if state == JobState.QUEUED else None


def _cursor(page: Sequence[tuple[Any, Any]]) -> str | None:
    """Name the last job of a page whose time is a number."""
    for row, _ in reversed(page):
        if finite(row.created_at) is not None:
            text = f"{row.created_at!r} {row.id}"
            return base64.urlsafe_b64encode(text.encode()).decode()
    return None


def _before(cursor: str) -> tuple[float, str]:
    """Read what `_cursor` wrote. Raises InvalidSetting."""
    try:
        created, job_id = base64.urlsafe_b64decode(cursor).decode().split(" ")
        moment = float(created)
    except (ValueError, binascii.Error):
        moment, job_id = math.nan, ""
    if not math.isfinite(moment) or not JOB_ID.fullmatch(job_id):
        raise InvalidSetting(
            f"cursor: found {cursor[:40]!r}; allowed is what an earlier page gave as "
            "`next`",
            field="cursor",
        )
    return moment, job_id
