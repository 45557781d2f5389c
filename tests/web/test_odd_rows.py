"""A row that cannot be read is left out, and stops no other."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text, update

from stylequeue_shared import reading
from stylequeue_shared.database import Database
from stylequeue_shared.models import SKIPPED_ROWS, Job, Snapshot, Worker
from tests.web.conftest import JOBS
from tests.web.conftest import Worker as Painter

PLACES = [JOBS, "/jobs", "/metrics", "/api/v1/workers", "/workers"]


def store(database: Database, table: str, **columns: str) -> None:
    """Write texts into columns of all rows, as no version does."""
    with database.write() as connection:
        for name, value in columns.items():
            connection.execute(
                text(f"UPDATE {table} SET {name} = :value"), {"value": value}
            )


def change(database: Database, job_id: str, **values: object) -> None:
    with database.write() as connection:
        connection.execute(update(Job).where(Job.id == job_id).values(**values))


def listed(client: FlaskClient) -> list[str]:
    answer = client.get(JOBS)
    assert answer.status_code == 200, answer.text
    return [job["id"] for job in answer.get_json()["jobs"]]


@pytest.fixture
def all_there(client: FlaskClient) -> Callable[[], None]:
    def look() -> None:
        for place in PLACES:
            answer = client.get(place)
            assert answer.status_code == 200, (place, answer.text)
            assert "NaN" not in answer.text

    return look


@pytest.mark.parametrize("stored", ['{"steps":', "[1]", '{"steps": "many"}', "5"])
def test_a_job_whose_settings_cannot_be_read_is_left_out_of_lists(
    client: FlaskClient,
    database: Database,
    submit: Callable[..., Any],
    all_there: Callable[[], None],
    stored: str,
) -> None:
    odd, good = submit()["id"], submit()["id"]
    with database.write() as connection:
        connection.execute(
            text("UPDATE jobs SET settings = :stored WHERE id = :id"),
            {"stored": stored, "id": odd},
        )
    all_there()
    assert listed(client) == [good]
    assert reading.counter(database, SKIPPED_ROWS) == 1
    assert "stylequeue_rows_skipped_total 1.0" in client.get("/metrics").text
    # By itself it is a defect of ours; it can still be cancelled and deleted.
    assert client.get(f"{JOBS}/{odd}").status_code == 500


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e300, -1e300, 2.6e11])
def test_times_and_numbers_without_meaning_are_shown_as_what_can_be_shown(
    client: FlaskClient,
    database: Database,
    submit: Callable[..., Any],
    all_there: Callable[[], None],
    value: float,
) -> None:
    odd, good = submit()["id"], submit()["id"]
    times = ("created_at", "started_at", "eta_start", "eta_finish", "finished_at")
    others = ("style_loss", "content_loss", "steps_per_second", "eta_seconds")
    numbers = dict.fromkeys((*times, *others), value)
    change(database, odd, **numbers, step=5, estimate={"seconds": 1e300})
    all_there()
    assert set(listed(client)) == {odd, good}
    for place in (f"{JOBS}/{odd}", f"/jobs/{odd}"):
        assert client.get(place).status_code == 200


@pytest.mark.parametrize(
    "stored", ['{"a": NaN}', '{"a": 1e999}', "[1]", "{", '{"seconds": "x"}']
)
def test_odd_json_beside_the_settings_is_left_out(
    client: FlaskClient,
    database: Database,
    submit: Callable[..., Any],
    all_there: Callable[[], None],
    stored: str,
) -> None:
    job = submit()["id"]
    store(database, "jobs", made_with=stored, estimate=stored)
    all_there()
    answer = client.get(f"{JOBS}/{job}")
    assert answer.status_code == 200
    assert json.loads(answer.text)["estimate"] is None
    assert client.get(f"/jobs/{job}").status_code == 200


def test_a_snapshot_whose_loss_is_no_number_is_left_out(
    client: FlaskClient,
    database: Database,
    submit: Callable[..., Any],
    worker: Painter,
) -> None:
    job = submit()["id"]
    held = worker.claim()
    worker.snapshot(held, 5)
    worker.snapshot(held, 10)
    with database.write() as connection:
        here = update(Snapshot).where(Snapshot.step == 5)
        connection.execute(here.values(style_loss=math.inf))
    body = client.get(f"{JOBS}/{job}").get_json()
    assert [one["step"] for one in body["snapshots"]] == [10]


@pytest.mark.parametrize("tally", ["[1]", "{", '{"resumes": "x", "starts": [1]}', "5"])
def test_a_worker_with_an_odd_tally_stops_no_metrics(
    database: Database,
    beat: Callable[..., None],
    all_there: Callable[[], None],
    tally: str,
) -> None:
    beat("gpu-1")
    store(database, "workers", tally=tally)
    all_there()


@pytest.mark.parametrize("speed", [0.0, -1.0, math.inf, 5e-324])
def test_a_worker_that_tells_an_odd_speed_stops_no_submission(
    database: Database,
    submit: Callable[..., Any],
    beat: Callable[..., None],
    all_there: Callable[[], None],
    speed: float,
) -> None:
    beat("gpu-1", operations_per_second=speed, bytes_per_second=speed)
    submit()
    all_there()


def test_a_worker_seen_at_a_time_without_meaning_is_shown(
    database: Database, beat: Callable[..., None], all_there: Callable[[], None]
) -> None:
    beat("gpu-1")
    with database.write() as connection:
        connection.execute(update(Worker).values(seen_at=1e300))
    all_there()
