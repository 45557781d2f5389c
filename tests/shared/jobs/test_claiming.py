import subprocess
import sys

import pytest

from stylequeue_shared import jobs
from stylequeue_shared.database import Database
from stylequeue_shared.models import JobState
from tests.shared.jobs.given import CLAIM_ALL, ENDED, change, end, time, together
from tests.shared.submitting import claim, picture, row, submit


def test_a_claim_has_all_that_a_worker_needs(database: Database) -> None:
    job_id = submit(database, content="cat", styles=("waves", "night"), steps=3)
    held = claim(database, "w1")
    assert (held.job_id, held.attempt, held.settings.steps) == (job_id, 1, 3)
    assert held.content_sha == picture("cat").sha256
    assert held.style_shas == (picture("waves").sha256, picture("night").sha256)


def test_a_claimed_job_runs_under_a_lease(database: Database) -> None:
    job_id = submit(database)
    claim(database, "w1", lease_seconds=30)
    found = row(database, job_id)
    assert (found.state, found.worker, found.attempt) == ("running", "w1", 1)
    assert found.version == 2
    assert found.lease_until == pytest.approx(time(database) + 30, abs=10)
    assert found.started_at is not None


def test_jobs_are_claimed_oldest_first_and_once(database: Database) -> None:
    ids = [submit(database) for _ in range(4)]
    assert [claim(database).job_id for _ in range(4)] == ids
    assert jobs.claim(database, "w1", lease_seconds=30) is None


@pytest.mark.parametrize("state", ENDED)
def test_an_ended_job_is_not_claimed(database: Database, state: JobState) -> None:
    end(database, state)
    assert jobs.claim(database, "w1", lease_seconds=30) is None


def test_stored_settings_that_are_no_longer_valid_fail_the_job_as_ours(
    database: Database,
) -> None:
    bad, worse, good = submit(database), submit(database), submit(database)
    change(database, bad, settings={**row(database, bad).settings, "steps": -1})
    change(database, worse, settings=["gone"])
    assert claim(database).job_id == good
    for job_id in (bad, worse):
        found = row(database, job_id)
        assert (found.state, found.error_fault) == ("failed", "ours")
        assert found.finished_at is not None
        assert (found.lease_until, found.worker) == (None, None)
    assert "steps" in row(database, bad).error_message


def test_many_processes_claim_each_job_once(database: Database) -> None:
    ids = [submit(database) for _ in range(60)]
    url = database.engine.url.render_as_string(hide_password=False)
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", CLAIM_ALL, url, f"w{number}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    said = [worker.communicate(timeout=120) for worker in workers]
    assert [errors for _, errors in said] == [""] * 4
    claimed = [line.split() for out, _ in said for line in out.splitlines()]
    assert sorted(job_id for job_id, _ in claimed) == ids
    assert {attempt for _, attempt in claimed} == {"1"}


def test_many_threads_claim_each_job_once(database: Database) -> None:
    ids = [submit(database) for _ in range(80)]
    claimed: list[str] = []

    def claim_all(worker: str) -> None:
        while held := jobs.claim(database, worker, lease_seconds=60):
            claimed.append(held.job_id)

    assert together(*[lambda n=n: claim_all(f"w{n}") for n in range(8)]) == []
    assert sorted(claimed) == ids
