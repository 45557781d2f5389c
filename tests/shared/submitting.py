"""Jobs and claims for tests of the queue, without web side and worker."""

import hashlib
from typing import Any

from sqlalchemy import Row, select, update

from stylequeue_shared import jobs
from stylequeue_shared.database import Database, now
from stylequeue_shared.decoding import Inspected
from stylequeue_shared.job_settings import complete_settings
from stylequeue_shared.jobs import Claim, Progress
from stylequeue_shared.models import Job
from stylequeue_shared.turns import Priority

HALF_WAY = Progress(
    step=350, style_loss=0.07, content_loss=0.43, steps_per_second=8.0, eta_seconds=44.0
)


def picture(name: str) -> Inspected:
    """Return what would be found about an upload of that name."""
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    return Inspected(sha256, "image/png", 64, 48, 100)


def submit(
    database: Database,
    content: str = "cat",
    styles: tuple[str, ...] = ("waves",),
    max_waiting: int = 1000,
    estimate: dict[str, Any] | None = None,
    priority: Priority = "normal",
    owner: str = "",
    **settings: Any,
) -> str:
    """Submit a job with pictures of those names."""
    found = [picture(name) for name in (content, *styles)]
    jobs.keep_pictures(database, found)
    content_sha, *style_shas = (picture.sha256 for picture in found)
    chosen = complete_settings(settings, styles=len(styles))
    return jobs.submit(
        database,
        chosen,
        content_sha,
        style_shas,
        max_waiting=max_waiting,
        estimate=estimate,
        priority=priority,
        owner=owner,
    )


def claim(database: Database, worker: str = "w1", lease_seconds: float = 30) -> Claim:
    """Claim the job whose turn it is; there must be one."""
    claimed = jobs.claim(database, worker, lease_seconds=lease_seconds)
    assert claimed is not None
    return claimed


def row(database: Database, job_id: str) -> Row[Any]:
    """Return the whole row of a job."""
    with database.read() as connection:
        return connection.execute(select(Job.__table__).where(Job.id == job_id)).one()


def run_out(database: Database, job_id: str) -> None:
    """Let the lease of a job have run out a second ago."""
    with database.write() as connection:
        connection.execute(
            update(Job).where(Job.id == job_id).values(lease_until=now() - 1)
        )
