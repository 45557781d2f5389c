import base64

import pytest
from flask.testing import FlaskClient

from stylequeue_shared import jobs
from stylequeue_shared.artefacts import PREVIEW_SIZE, result_key
from stylequeue_shared.database import Database
from stylequeue_shared.errors import InvalidSetting, NotFound, NumericalError
from stylequeue_shared.jobs import Result
from stylequeue_shared.models import TERMINAL, JobState
from stylequeue_web import records
from stylequeue_web.app import Application
from stylequeue_web.positions import Positions
from stylequeue_web.records import Version
from stylequeue_web.schemas import JobBody
from stylequeue_web.services import NAME, Services
from tests.shared.submitting import submit
from tests.web.conftest import JOBS, Clock, Worker

ID = "0190b6a4-7c3f-7d2e-8a51-3f2c9d8e7b6a"


@pytest.fixture
def clock(app: Application, database: Database) -> Clock:
    """The clock after which the application reads the queue again."""
    clock = Clock()
    ours: Services = app.extensions[NAME]
    object.__setattr__(ours, "positions", Positions(ours.database, clock))
    return clock


def run(database: Database, worker: Worker, state: str) -> str:
    """Return a job in that state."""
    job_id = submit(database)
    if state == JobState.CANCELLED:
        jobs.request(database, job_id, "cancel")
    if state in (JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED):
        claim = worker.claim()
        worker.snapshot(claim, 50)
        if state == JobState.SUCCEEDED:
            worker.succeed(claim)
        if state == JobState.FAILED:
            jobs.fail(database, claim, NumericalError("the loss is not finite"))
    return job_id


STATES = [state for state in JobState if state != JobState.PAUSED]


@pytest.mark.parametrize("state", STATES)
def test_nothing_in_a_job_is_computed_from_the_clock(
    client: FlaskClient, database: Database, worker: Worker, clock: Clock, state: str
) -> None:
    here = f"{JOBS}/{run(database, worker, state)}"
    first = client.get(here)
    clock.now += 3600
    second = client.get(here)
    assert second.data == first.data
    assert second.headers["ETag"] == first.headers["ETag"]
    assert JobBody.model_validate(first.get_json()).state == state


@pytest.mark.parametrize("state", STATES)
def test_a_poll_is_told_when_to_come_back_until_the_job_has_ended(
    client: FlaskClient, database: Database, worker: Worker, state: JobState
) -> None:
    here = f"{JOBS}/{run(database, worker, state)}"
    answer = client.get(here)
    unchanged = client.get(here, headers={"If-None-Match": answer.headers["ETag"]})
    assert (unchanged.status_code, unchanged.data) == (304, b"")
    for headers in (answer.headers, unchanged.headers):
        assert ("Retry-After" in headers) == (state not in TERMINAL)


def test_the_etag_moves_when_the_queue_does(
    client: FlaskClient, database: Database, worker: Worker, clock: Clock
) -> None:
    submit(database)
    here = f"{JOBS}/{submit(database)}"
    first = client.get(here)
    worker.claim()
    clock.now += 60
    second = client.get(here, headers={"If-None-Match": first.headers["ETag"]})
    assert second.status_code == 200
    assert first.get_json()["queue_position"] == 2
    assert second.get_json()["queue_position"] == 1
    assert second.headers["ETag"] != first.headers["ETag"]


def test_no_two_versions_share_an_etag() -> None:
    found = [
        Version(version, "queued", position).etag
        for version in (1, 2, 11, 12, 111)
        for position in (None, 1, 2, 11, 111)
    ]
    assert len(set(found)) == len(found)


def test_polls_of_jobs_that_do_not_wait_never_read_the_queue(
    client: FlaskClient, database: Database, worker: Worker, asked: list[str]
) -> None:
    ids = [run(database, worker, state) for state in STATES if state != "queued"]
    for job_id in ids:
        etag = client.get(f"{JOBS}/{job_id}").headers["ETag"]
        asked.clear()
        for _ in range(10):
            client.get(f"{JOBS}/{job_id}", headers={"If-None-Match": etag})
        # One row by its key each time.
        assert len(asked) == 10
        assert not [statement for statement in asked if "ORDER BY" in statement]


def test_snapshots_stand_by_step_and_every_address_leads_somewhere(
    client: FlaskClient, database: Database, worker: Worker
) -> None:
    job_id = submit(database)
    claim = worker.claim()
    for step in (50, 100, 700):
        worker.snapshot(claim, step)
    worker.succeed(claim)
    job = client.get(f"{JOBS}/{job_id}").get_json()
    assert [snapshot["step"] for snapshot in job["snapshots"]] == [50, 100, 700]
    for picture in (*job["snapshots"], job["result"]):
        assert picture["preview_url"] == f"{picture['url']}?size={PREVIEW_SIZE}"
        for address in (picture["url"], picture["preview_url"]):
            assert client.get(address).mimetype.startswith("image/")
    assert client.get(job["links"]["self"]).status_code == 200


def test_a_failed_job_may_leave_a_partial_result(
    client: FlaskClient, database: Database, worker: Worker
) -> None:
    job_id = submit(database)
    claim = worker.claim()
    best = Result(result_key(job_id, claim.attempt), 96, 64, partial=True)
    jobs.fail(database, claim, NumericalError("not finite"), partial=best)
    result = client.get(f"{JOBS}/{job_id}").get_json()["result"]
    assert (result["partial"], result["width"], result["height"]) == (True, 96, 64)


@pytest.mark.parametrize(
    "job_id",
    [
        "",
        "1",
        ID.upper(),
        ID.replace("-", ""),
        f"{{{ID}}}",
        f"urn:uuid:{ID}",
        f" {ID}",
        f"{ID}\n",
        f"{ID}0",
        ID[:-1],
        "g" + ID[1:],
        ID.replace("0", "٠"),
    ],
)
def test_what_is_no_id_is_not_found(job_id: str) -> None:
    with pytest.raises(NotFound):
        records.check_id(job_id)


def cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "given",
    [
        "",
        "?",
        "abc",
        "ä",
        cursor(""),
        cursor("1"),
        cursor(ID),
        cursor(f"now {ID}"),
        cursor(f"nan {ID}"),
        cursor(f"-inf {ID}"),
        cursor(f"1e999 {ID}"),
        cursor("1 x"),
        cursor(f"1 {ID} 2"),
        cursor(f"1 {ID}\0"),
    ],
)
def test_what_is_no_cursor_of_ours_is_refused(app: Application, given: str) -> None:
    with pytest.raises(InvalidSetting, match="cursor: found") as refusal:
        records.page(app.extensions[NAME], state=None, limit=1, cursor=given)
    assert refusal.value.field == "cursor"


def test_the_etag_names_the_release(
    client: FlaskClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = f"{JOBS}/{submit(database)}"
    etag = client.get(here).headers["ETag"]
    assert client.get(here, headers={"If-None-Match": etag}).status_code == 304
    # The next one may have more to say of the same job.
    monkeypatch.setattr(records, "RELEASE", "99.0")
    assert client.get(here, headers={"If-None-Match": etag}).status_code == 200


def test_a_cursor_outlives_the_job_that_it_names(
    app: Application, database: Database
) -> None:
    ids = [submit(database) for _ in range(3)]
    ours = app.extensions[NAME]
    with app.test_request_context():
        (newest,), cursor = records.page(ours, state=None, limit=1, cursor=None)
        assert newest["id"] == ids[2]
        jobs.request(database, ids[2], "cancel")
        jobs.forget(database, ids[2])
        rest, end = records.page(ours, state=None, limit=5, cursor=cursor)
    assert [job["id"] for job in rest] == ids[1::-1]
    assert end is None
