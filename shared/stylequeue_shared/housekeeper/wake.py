"""Send the wake-ups that are missing."""

import structlog
from sqlalchemy import Connection, exists, func, select

from stylequeue_shared import jobs, reading
from stylequeue_shared.database import Database, now
from stylequeue_shared.models import Job, JobState, Worker
from stylequeue_shared.queue import Bell

log = structlog.get_logger()


def wake_workers(database: Database, bell: Bell) -> None:
    """Send the wake-ups that are missing: no more than idle workers could take."""
    if reading.is_paused(database):
        return
    with database.read() as connection:
        waiting = connection.scalars(
            select(Job.id).where(Job.state == JobState.QUEUED).limit(1000)
        ).all()
        wanted = min(len(waiting), _idle_workers(connection))
    if not wanted:
        return
    messages = bell.waiting()
    if messages is None:
        return
    for job_id in waiting[: max(0, wanted - messages)]:
        if not bell.ring(job_id):
            return  # each try may take seconds; the next round is soon
        log.info("woken_again", job=job_id)


def _idle_workers(connection: Connection) -> int:
    busy = exists().where(Job.worker == Worker.name, Job.state == JobState.RUNNING)
    idle = (
        select(func.count())
        .select_from(Worker)
        .where(
            Worker.seen_at > now() - jobs.ALIVE_SECONDS,
            Worker.refuses.is_(None),
            Worker.drain.is_(None),
            ~busy,
        )
    )
    return connection.scalar(idle) or 0
