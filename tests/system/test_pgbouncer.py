"""Everything that is asked of the database, through PgBouncer in transaction mode."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text

from stylequeue_shared import jobs, registry
from stylequeue_shared.database import Database
from stylequeue_shared.jobs import Progress, Result
from stylequeue_shared.migrate import check, migrate
from stylequeue_shared.models import Job, JobState
from stylequeue_shared.settings import Settings
from stylequeue_web.app import Application, create_app
from tests.pgbouncer import pgbouncer
from tests.shared.submitting import submit
from tests.web.conftest import JOBS, close, form

ROUNDS = 12
WORKERS = ("w1", "w2", "w3")


@pytest.fixture
def pooled_url(postgresql_url: str) -> Iterator[str]:
    with pgbouncer(postgresql_url) as url:
        yield url


@pytest.fixture
def app(pooled_url: str, tmp_path: Path) -> Iterator[Application]:
    app = create_app(Settings(home=tmp_path, database=pooled_url))
    yield app
    close(app)


def work(url: str, name: str) -> int:
    """Claim and end jobs as a worker does; return how many it was given."""
    database, done = Database(url), 0
    identity = registry.Identity(name, "castle", "cpu", None)
    for _ in range(ROUNDS):
        registry.beat(database, identity)
        held = jobs.claim(database, name, lease_seconds=60, budget=10**10)
        if held is None:
            continue
        for step in range(1, 9):
            progress = Progress(step, 0.1, 0.1, 1.0, 1.0)
            jobs.report(database, held, progress, lease_seconds=60)
            jobs.renew(database, held, lease_seconds=60)
        jobs.add_snapshot(database, held, f"jobs/a/1/{step}.png", progress, (64, 48))
        jobs.succeed(database, held, progress, Result("jobs/a/1/result.png", 64, 48))
        done += 1
    database.close()
    return done


def poll(app: Application, job_id: str) -> set[int]:
    """Ask for a job, the list and the workers as a page does; return the statuses."""
    client, found = app.test_client(), set()
    for _ in range(3 * ROUNDS):
        for address in (f"{JOBS}/{job_id}", JOBS, "/api/v1/workers", "/metrics"):
            found.add(client.get(address).status_code)
    return found


def submit_by_api(app: Application) -> set[int]:
    client = app.test_client()
    fields: Callable[[], dict[str, Any]] = form
    return {client.post(JOBS, data=fields()).status_code for _ in range(3)}


def test_clients_that_share_sessions_do_not_disturb_each_other(
    pooled_url: str, app: Application
) -> None:
    migrate(pooled_url)
    database = Database(pooled_url)
    check(database)
    database.check()
    first, *_ = [submit(database, owner=f"o{n % 3}") for n in range(20)]
    with ThreadPoolExecutor() as pool:
        workers = [pool.submit(work, pooled_url, name) for name in WORKERS]
        polls = [pool.submit(poll, app, first) for _ in range(3)]
        sent = pool.submit(submit_by_api, app)
    assert [one.result() for one in polls] == [{200}] * 3
    assert sent.result() == {201}
    done = sum(one.result() for one in workers)
    with database.read() as connection:
        by_state = select(Job.state, func.count()).group_by(Job.state)
        found = dict(connection.execute(by_state).all())
        assert connection.scalar(text("SHOW lock_timeout")) == "8s"
    database.close()
    assert done >= 20
    assert found.pop(JobState.SUCCEEDED) == done
    assert set(found) <= {JobState.QUEUED}
