import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event, insert, update
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from stylequeue_shared import free_space, jobs
from stylequeue_shared.database import Database, now
from stylequeue_shared.embedded import EmbeddedRedis
from stylequeue_shared.models import Job, JobState
from stylequeue_shared.models import Worker as WorkerRow
from stylequeue_shared.settings import Settings
from stylequeue_web import readiness as readiness_module
from stylequeue_web.app import Application, create_app
from stylequeue_web.services import NAME
from tests.shared.submitting import submit
from tests.web.conftest import JOBS, Kept, Worker, close


@pytest.fixture
def valkey(installation: Settings) -> Iterator[tuple[EmbeddedRedis, "Popen[bytes]"]]:
    server = EmbeddedRedis(installation.home)
    process = server.start()
    yield server, process
    server.stop(process)


@pytest.fixture
def ready(valkey: Any, client: FlaskClient) -> FlaskClient:
    """A client of an installation that has everything."""
    return client


def readiness(client: FlaskClient, installation: Settings) -> tuple[int, Any]:
    answer = client.get("/readyz")
    assert answer.mimetype == "application/json"
    # Reasons, which may hold addresses, are for the log.
    for secret in (str(installation.home), "redis.sock", "sqlite", "Error"):
        assert secret not in answer.text
    return answer.status_code, answer.get_json()


def numbers(client: FlaskClient, token: str | None = None) -> dict[str, float]:
    """Return the metrics by name, or by state; those of a worker by both."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = client.get("/metrics", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    return {
        sample.labels.get("state", ":".join([sample.name, *sample.labels.values()])): (
            sample.value
        )
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_alive_needs_nothing_and_nobody(
    client: FlaskClient, app: Application, installation: Settings
) -> None:
    app.extensions[NAME].database.close()
    shutil.rmtree(installation.home)
    answer = client.get("/healthz")
    assert (answer.status_code, answer.get_json()) == (200, {"status": "alive"})


READY = {
    "status": "ready",
    "database": "ok",
    "store": "ok",
    "temporary_folder": "ok",
    "redis": "ok",
}
NOT_READY = READY | {"status": "not ready", "redis": "degraded"}


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have everything checked whenever somebody asks."""
    monkeypatch.setattr(readiness_module, "KEPT_SECONDS", 0.0)


def test_ready_when_all_that_a_job_is_written_to_takes_it(
    ready: FlaskClient, installation: Settings, kept: Kept
) -> None:
    assert readiness(ready, installation) == (200, READY)
    assert kept.is_nothing()


@pytest.mark.usefixtures("fresh")
def test_without_redis_it_is_ready_and_degraded_until_redis_is_back(
    valkey: tuple[EmbeddedRedis, "Popen[bytes]"],
    ready: FlaskClient,
    installation: Settings,
) -> None:
    server, process = valkey
    assert readiness(ready, installation) == (200, READY)
    server.stop(process)
    with capture_logs() as logs:
        assert readiness(ready, installation) == (200, READY | {"redis": "degraded"})
    assert [log["event"] for log in logs] == ["not_ready"]
    assert "Redis" in logs[0]["error"]
    again = server.start()
    try:
        assert readiness(ready, installation) == (200, READY)
    finally:
        server.stop(again)


def test_a_database_and_a_store_that_go_away_are_named(
    client: FlaskClient, app: Application, installation: Settings
) -> None:
    app.extensions[NAME].database.close()
    for path in (installation.home / "stylequeue.db", Path(installation.store_url)):
        path.rename(path.with_suffix(".away"))
    Path(installation.store_url).write_text("no folder")
    (installation.home / "stylequeue.db").mkdir()
    lost = dict.fromkeys(["database", "store"], "cannot be written to")
    assert readiness(client, installation) == (503, NOT_READY | lost)


def test_a_database_that_can_only_be_read_is_not_ready(
    client: FlaskClient, app: Application, installation: Settings
) -> None:
    def refuse_writes(connection: Any, *others: object) -> None:
        connection.execute("PRAGMA query_only = ON")

    event.listen(app.extensions[NAME].database.engine, "checkout", refuse_writes)
    assert client.get(JOBS).status_code == 200
    found = {"database": "cannot be written to"}
    assert readiness(client, installation) == (503, NOT_READY | found)


def test_a_store_below_the_floor_of_submission_is_not_ready(
    client: FlaskClient, installation: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free_space, "FREE_BYTES_FLOOR", 10**18)
    assert readiness(client, installation) == (503, NOT_READY | {"store": "full"})


def test_a_store_is_not_blamed_for_a_database_that_cannot_say_how_full_it_is(
    client: FlaskClient, installation: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object) -> None:
        raise OperationalError("SELECT", {}, Exception("server closed the connection"))

    monkeypatch.setattr(free_space, "check", fail)
    assert readiness(client, installation) == (200, READY | {"redis": "degraded"})


def test_a_temporary_folder_that_takes_nothing_is_not_ready(
    client: FlaskClient, installation: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(readiness_module.tempfile, "TemporaryFile", fail)
    found = {"temporary_folder": "full"}
    assert readiness(client, installation) == (503, NOT_READY | found)


def test_the_numbers_of_an_idle_installation_are_all_there(
    client: FlaskClient,
) -> None:
    assert numbers(client) == {
        **dict.fromkeys(JobState, 0),
        "stylequeue_oldest_waiting_seconds": 0,
        "stylequeue_workers": 0,
        "stylequeue_workers_taking_jobs": 0,
        "stylequeue_steps_per_second": 0,
        "stylequeue_queue_paused": 0,
        "stylequeue_lost_leases_total": 0,
        "stylequeue_rows_skipped_total": 0,
        "stylequeue_worker_seconds_total": 0,
    }


def test_jobs_are_counted_by_state_and_workers_by_speed(
    client: FlaskClient, database: Database, worker: Worker
) -> None:
    ids = [submit(database) for _ in range(5)]
    worker.succeed(worker.claim())
    worker.snapshot(worker.claim(), 50)
    jobs.request(database, ids[2], "cancel")
    with database.write() as connection:
        for name, age in (("gpu-1", 1), ("gpu-2", 2), ("long gone", 3600)):
            connection.execute(
                insert(WorkerRow).values(
                    name=name,
                    host="castle",
                    device="cpu",
                    started_at=now() - 7200,
                    seen_at=now() - age,
                    refuses="3 jobs in a row failed here" if age == 2 else None,
                )
            )
        oldest = Job.__table__.c
        connection.execute(
            update(Job).where(oldest.id == ids[3]).values(created_at=now() - 90)
        )
    found = {name: n for name, n in numbers(client).items() if ":" not in name}
    assert found.pop("stylequeue_worker_seconds_total") > 0
    assert 90 <= found.pop("stylequeue_oldest_waiting_seconds") < 120
    assert found == {
        **dict.fromkeys(JobState, 0),
        "succeeded": 1,
        "running": 1,
        "cancelled": 1,
        "queued": 2,
        "stylequeue_workers": 2,
        "stylequeue_workers_taking_jobs": 1,
        "stylequeue_steps_per_second": 8.1,
        "stylequeue_queue_paused": 0,
        "stylequeue_lost_leases_total": 0,
        "stylequeue_rows_skipped_total": 0,
    }


def test_what_each_worker_counted_is_told(
    client: FlaskClient, beat: Callable[..., None]
) -> None:
    tally = {"starts": 3, "start_seconds": 4.5, "resumes": 2, "out_of_memory": 1}
    beat("gpu-1", tally=tally | {"checkpoints": 7, "checkpoint_seconds": 1.25})
    beat("gpu-2")
    found = numbers(client)
    assert {
        name.removeprefix("stylequeue_").removesuffix(":gpu-1"): value
        for name, value in found.items()
        if name.endswith(":gpu-1")
    } == {
        "start_seconds_count": 3,
        "start_seconds_sum": 4.5,
        "checkpoint_seconds_count": 7,
        "checkpoint_seconds_sum": 1.25,
        "resumes_total": 2,
        "out_of_memory_total": 1,
    }
    assert found["stylequeue_resumes_total:gpu-2"] == 0


def test_lost_leases_and_the_seconds_of_each_owner_are_counted(
    installation: Settings, database: Database, worker: Worker
) -> None:
    token = "a-token-of-operators"
    given = {**installation.model_dump(), "operator_token": token}
    app = create_app(Settings.model_validate(given))
    client = app.test_client()
    names = {submit(database, owner="ann"): "ann", submit(database, owner="bob"): "bob"}
    for _ in names:
        worker.claim()
    with database.write() as connection:
        changes = {"lease_until": now() - 1, "claimed_at": now() - 100}
        connection.execute(update(Job).values(changes))
    assert set(jobs.return_lost(database)) == set(names)
    found = numbers(client, token)
    assert found["stylequeue_lost_leases_total"] == 2
    of_each = [
        found[f"stylequeue_worker_seconds_total:{name}"] for name in ("ann", "bob")
    ]
    assert all(100 <= seconds < 160 for seconds in of_each)
    # Without the token nobody's name is told.
    assert numbers(client)["stylequeue_worker_seconds_total"] == sum(of_each)
    assert "ann" not in client.get("/metrics").text
    wrong = client.get("/metrics", headers={"Authorization": "Bearer wrong"})
    assert wrong.status_code == 401
    # A proxy's own password is no token.
    basic = client.get("/metrics", headers={"Authorization": "Basic YTph"})
    assert basic.status_code == 200
    assert "ann" not in basic.text
    close(app)


def test_a_paused_queue_is_told(client: FlaskClient, database: Database) -> None:
    jobs.pause_queue(database, paused=True)
    assert numbers(client)["stylequeue_queue_paused"] == 1


def test_the_numbers_say_what_they_are(client: FlaskClient) -> None:
    families = list(text_string_to_metric_families(client.get("/metrics").text))
    assert len(families) == 13
    for family in families:
        assert family.type in ("gauge", "counter", "summary")
        assert family.documentation.endswith(".")
