import re
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from flask.testing import FlaskClient
from PIL import Image
from sqlalchemy import insert

from stylequeue_shared import jobs
from stylequeue_shared.database import Database, now
from stylequeue_shared.errors import NumericalError
from stylequeue_shared.models import Worker as WorkerRow
from stylequeue_shared.once import once
from stylequeue_web.schemas import JobBody
from tests.web.conftest import CONTENT, JOBS, STYLE, Kept, Worker, form

Submit = Callable[..., dict[str, Any]]
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def finished(submit: Submit, worker: Worker, **fields: Any) -> str:
    """Submit and run a job; return its address."""
    job = submit(**fields)
    claim = worker.claim()
    assert claim.job_id == job["id"]
    worker.snapshot(claim, 50)
    worker.snapshot(claim, 100)
    worker.succeed(claim)
    address: str = job["links"]["self"]
    return address


def test_a_submission_is_answered_with_the_job_and_its_address(
    client: FlaskClient,
) -> None:
    answer = client.post(JOBS, data=form(settings={"steps": 60, "seed": 9}))
    assert answer.status_code == 201
    job = answer.get_json()
    here = f"{JOBS}/{job['id']}"
    assert answer.headers["Location"] == here
    assert job["state"] == "queued"
    assert job["queue_position"] == 1
    assert job["attempt"] == 0
    assert RFC_3339.fullmatch(job["created_at"])
    assert job["settings"]["steps"] == 60
    assert job["settings"]["seed"] == 9
    assert job["settings"]["image_size"] == 256
    assert job["snapshots"] == []
    for name in (
        "started_at",
        "finished_at",
        "progress",
        "requested",
        "stop_reason",
        "result",
        "error",
        # No worker is there.
        "estimate",
    ):
        assert job[name] is None
    assert job["links"] == {
        "self": here,
        "page": f"/jobs/{job['id']}",
        **{
            call: f"{here}/{call}"
            for call in ("cancel", "finish", "pause", "resume", "retry")
        },
    }


def test_a_seed_is_drawn_and_recorded_when_none_is_given(submit: Submit) -> None:
    seeds = {submit()["settings"]["seed"] for _ in range(2)}
    assert len(seeds) == 2


def test_an_empty_settings_field_means_the_defaults(submit: Submit) -> None:
    assert submit(settings="")["settings"]["preset"] == "classic"


def test_a_running_job_shows_progress_and_snapshots(
    client: FlaskClient, submit: Submit, worker: Worker
) -> None:
    here = submit()["links"]["self"]
    claim = worker.claim()
    assert client.get(here).get_json()["progress"] is None
    worker.snapshot(claim, 50)
    job = client.get(here).get_json()
    assert job["state"] == "running"
    assert job["attempt"] == 1
    assert job["queue_position"] is None
    assert RFC_3339.fullmatch(job["started_at"])
    assert job["progress"] == {
        "step": 50,
        "steps": 700,
        "style_loss": 0.07,
        "content_loss": 0.43,
        "steps_per_second": 8.1,
        "eta_seconds": 71.6,
    }
    assert job["snapshots"] == [
        {
            "step": 50,
            "style_loss": 0.07,
            "content_loss": 0.43,
            "url": f"{here}/snapshots/50",
            "preview_url": f"{here}/snapshots/50?size=512",
        }
    ]


def test_a_finished_job_names_its_result(
    client: FlaskClient, submit: Submit, worker: Worker
) -> None:
    here = finished(submit, worker)
    answer = client.get(here)
    job = answer.get_json()
    assert (job["state"], job["stop_reason"]) == ("succeeded", "completed")
    assert RFC_3339.fullmatch(job["finished_at"])
    assert job["progress"]["steps_per_second"] == 8.1
    assert job["result"] == {
        "url": f"{here}/result",
        "preview_url": f"{here}/result?size=512",
        "media_type": "image/png",
        "width": 600,
        "height": 400,
        "partial": False,
    }
    assert "Retry-After" not in answer.headers


def test_a_failed_job_says_why_and_whose_fault_it_was(
    client: FlaskClient, submit: Submit, worker: Worker, database: Database
) -> None:
    here = submit()["links"]["self"]
    jobs.fail(database, worker.claim(), NumericalError("the loss is not finite"))
    assert client.get(here).get_json()["error"] == {
        "code": "not_finite",
        "message": "the loss is not finite",
        "fault": "ours",
    }


def test_an_unchanged_job_gives_an_unchanged_body_and_etag(
    client: FlaskClient, submit: Submit
) -> None:
    here = submit()["links"]["self"]
    first, second = client.get(here), client.get(here)
    assert first.data == second.data
    assert first.headers["ETag"] == second.headers["ETag"]
    assert first.headers["Retry-After"] == "1"
    assert "no-cache" in first.headers["Cache-Control"]


@pytest.mark.parametrize(
    "given", ["{}", "W/{}", '"other", {}', '"other", W/{} , "third"', "*"]
)
def test_a_poll_with_the_etag_gets_304_without_a_body(
    client: FlaskClient, submit: Submit, given: str
) -> None:
    here = submit()["links"]["self"]
    etag = client.get(here).headers["ETag"]
    answer = client.get(here, headers={"If-None-Match": given.format(etag)})
    assert answer.status_code == 304
    assert answer.data == b""
    assert answer.headers["ETag"] == etag
    assert answer.headers["Retry-After"] == "1"


@pytest.mark.parametrize("given", ['"other"', "", "nonsense", '"', "W/", '"1.1"x'])
def test_a_poll_with_another_etag_gets_the_job(
    client: FlaskClient, submit: Submit, given: str
) -> None:
    here = submit()["links"]["self"]
    answer = client.get(here, headers={"If-None-Match": given})
    assert answer.status_code == 200
    assert answer.get_json()["state"] == "queued"


def test_every_change_of_a_job_changes_its_etag(
    client: FlaskClient, submit: Submit, worker: Worker
) -> None:
    here = submit()["links"]["self"]
    etags = [client.get(here).headers["ETag"]]
    claim = worker.claim()
    etags.append(client.get(here).headers["ETag"])
    worker.snapshot(claim, 50)
    etags.append(client.get(here).headers["ETag"])
    client.post(f"{here}/cancel")
    etags.append(client.get(here).headers["ETag"])
    assert len(set(etags)) == 4


def test_etags_of_a_deleted_job_are_not_found_even_for_a_star(
    client: FlaskClient,
) -> None:
    answer = client.get(f"{JOBS}/nothing", headers={"If-None-Match": "*"})
    assert answer.status_code == 404


def test_the_queue_is_numbered_by_turn(client: FlaskClient, submit: Submit) -> None:
    jobs = [submit() for _ in range(3)]
    assert [job["queue_position"] for job in jobs] == [1, 2, 3]
    listed = client.get(JOBS).get_json()["jobs"]
    assert [job["queue_position"] for job in listed] == [3, 2, 1]


def test_jobs_are_paged_newest_first(client: FlaskClient, submit: Submit) -> None:
    newest_first = [submit()["id"] for _ in range(5)][::-1]
    seen: list[str] = []
    address: str | None = f"{JOBS}?limit=2"
    sizes = []
    while address:
        page = client.get(address).get_json()
        assert set(page) == {"jobs", "next"}
        sizes.append(len(page["jobs"]))
        seen += [job["id"] for job in page["jobs"]]
        address = page["next"]
        assert address is None or address.startswith(f"{JOBS}?")
    assert seen == newest_first
    assert sizes == [2, 2, 1]


def test_jobs_are_listed_by_state(
    client: FlaskClient, submit: Submit, worker: Worker
) -> None:
    first, second, third = (submit()["id"] for _ in range(3))
    worker.claim()
    page = client.get(f"{JOBS}?state=queued&limit=1").get_json()
    assert [job["id"] for job in page["jobs"]] == [third]
    page = client.get(page["next"]).get_json()
    assert [job["id"] for job in page["jobs"]] == [second]
    assert page["next"] is None
    page = client.get(f"{JOBS}?state=running").get_json()
    assert [job["id"] for job in page["jobs"]] == [first]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("state=sleeping", "state"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=many", "limit"),
        ("limit=", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("cursor=abc", "cursor"),
        ("cursor=%00", "cursor"),
        ("cursor=%ff", "cursor"),
        ("cursor=ä", "cursor"),
        ("cursor=" + "a" * 500, "cursor"),
        # base64 of "nan x", "inf x", "1 <NUL>", "1e999 x"
        ("cursor=bmFuIHg=", "cursor"),
        ("cursor=aW5mIHg=", "cursor"),
        ("cursor=MSAA", "cursor"),
        ("cursor=MWU5OTkgeA==", "cursor"),
    ],
)
def test_what_cannot_be_asked_of_the_list_is_refused_at_its_field(
    client: FlaskClient, query: str, field: str
) -> None:
    answer = client.get(f"{JOBS}?{query}")
    assert answer.status_code == 422
    assert answer.mimetype == "application/problem+json"
    body = answer.get_json()
    assert body["field"] == field
    assert len(body["detail"]) < 500


def test_a_waiting_job_is_cancelled_at_once(
    client: FlaskClient, submit: Submit
) -> None:
    answer = client.post(submit()["links"]["cancel"])
    assert answer.status_code == 202
    assert answer.get_json()["state"] == "cancelled"
    assert answer.get_json()["queue_position"] is None


def test_a_running_job_is_asked_to_be_cancelled(
    client: FlaskClient, submit: Submit, worker: Worker, database: Database
) -> None:
    cancel = submit()["links"]["cancel"]
    claim = worker.claim()
    job = client.post(cancel).get_json()
    assert (job["state"], job["requested"]) == ("running", "cancel")
    assert client.post(cancel).get_json() == job
    assert jobs.renew(database, claim, lease_seconds=30) == "cancel"


def test_cancelling_an_ended_job_leaves_it_as_it_is(
    client: FlaskClient, submit: Submit, worker: Worker
) -> None:
    here = finished(submit, worker)
    before = client.get(here).data
    answer = client.post(f"{here}/cancel")
    assert answer.status_code == 202
    assert answer.data == before


def test_a_running_job_is_asked_to_finish_or_to_pause_until_it_does(
    client: FlaskClient, submit: Submit, worker: Worker, database: Database
) -> None:
    links = submit()["links"]
    claim = worker.claim()
    for what in ("finish", "pause"):
        answer = client.post(links[what])
        assert answer.status_code == 202
        job = answer.get_json()
        assert (job["state"], job["requested"]) == ("running", what)
        assert JobBody.model_validate(job)
        assert jobs.renew(database, claim, lease_seconds=30) == what
    # Taken back before the worker heeded it.
    job = client.post(links["resume"]).get_json()
    assert (job["state"], job["requested"]) == ("running", None)


def test_a_waiting_job_is_paused_and_resumed_at_once(
    client: FlaskClient, submit: Submit, database: Database
) -> None:
    links = submit()["links"]
    job = client.post(links["pause"]).get_json()
    assert (job["state"], job["queue_position"]) == ("paused", None)
    assert JobBody.model_validate(job)
    assert jobs.claim(database, "gpu-1", lease_seconds=30) is None
    job = client.post(links["resume"]).get_json()
    assert (job["state"], job["queue_position"]) == ("queued", 1)
    assert jobs.claim(database, "gpu-1", lease_seconds=30)


def test_a_job_that_waits_again_is_finished_with_its_newest_picture(
    client: FlaskClient, submit: Submit, worker: Worker, database: Database
) -> None:
    links = submit()["links"]
    refused = client.post(links["finish"])
    assert (refused.status_code, refused.get_json()["code"]) == (409, "conflict")
    claim = worker.claim()
    worker.snapshot(claim, 50)
    jobs.hand_back(database, claim)
    job = client.post(links["finish"]).get_json()
    assert (job["state"], job["stop_reason"]) == ("succeeded", "finished_early")
    assert JobBody.model_validate(job)
    assert client.get(job["result"]["url"]).status_code == 200


@pytest.mark.parametrize("call", ["finish", "pause", "resume"])
def test_an_ended_job_can_no_longer_be_asked_for_anything(
    client: FlaskClient, submit: Submit, worker: Worker, call: str
) -> None:
    here = finished(submit, worker)
    before = client.get(here).data
    answer = client.post(f"{here}/{call}")
    assert (answer.status_code, answer.get_json()["code"]) == (409, "conflict")
    assert "succeeded" in answer.get_json()["detail"]
    assert client.get(here).data == before


def test_a_retry_is_a_new_job_with_the_same_pictures_settings_and_seed(
    client: FlaskClient, submit: Submit, worker: Worker
) -> None:
    here = finished(
        submit, worker, style=[STYLE, CONTENT], settings={"style_blend": [1, 2]}
    )
    old = client.get(here).get_json()
    answer = client.post(old["links"]["retry"])
    assert answer.status_code == 201
    new = answer.get_json()
    assert answer.headers["Location"] == new["links"]["self"]
    assert new["id"] != old["id"]
    assert new["settings"] == old["settings"]
    assert (new["state"], new["attempt"], new["result"]) == ("queued", 0, None)
    for name in ("content", "styles/0", "styles/1"):
        ours = client.get(f"{new['links']['self']}/{name}").data
        assert ours == client.get(f"{here}/{name}").data


def keyed(client: FlaskClient, key: str = "a-key", **fields: Any) -> Any:
    return client.post(JOBS, data=form(**fields), headers={"Idempotency-Key": key})


def test_the_same_key_with_the_same_submission_gives_the_first_job_again(
    client: FlaskClient, submit: Submit, kept: Kept
) -> None:
    sent = {"style": [STYLE, CONTENT], "settings": {"steps": 9, "image_size": 64}}
    first = keyed(client, **sent)
    assert first.status_code == 201
    rows, files = kept.rows(), kept.files()
    # The order of settings says nothing; the seed was drawn for the first.
    sent["settings"] = {"image_size": 64, "steps": 9}
    again = keyed(client, **sent)
    assert again.status_code == 200
    assert again.get_json() == first.get_json()
    assert again.headers["Location"] == first.headers["Location"]
    assert (kept.rows(), kept.files()) == (rows, files)
    assert keyed(client, key="another", **sent).status_code == 201


@pytest.mark.parametrize(
    "other",
    [
        {"content": STYLE},
        {"style": [STYLE, CONTENT]},
        {"settings": {"steps": 9}},
        {"settings": {"seed": 1}},
    ],
)
def test_the_same_key_with_another_submission_is_refused(
    client: FlaskClient, kept: Kept, other: dict[str, Any]
) -> None:
    keyed(client)
    rows, files = kept.rows(), kept.files()
    answer = keyed(client, **other)
    assert (answer.status_code, answer.get_json()["code"]) == (409, "conflict")
    assert answer.get_json()["field"] == "Idempotency-Key"
    assert (kept.rows(), kept.files()) == (rows, files)


def test_a_key_whose_submission_is_at_work_is_to_be_tried_again(
    client: FlaskClient, database: Database, kept: Kept
) -> None:
    with once(database, " a-key"):
        answer = keyed(client)
        assert (answer.status_code, answer.get_json()["code"]) == (409, "in_flight")
        assert int(answer.headers["Retry-After"]) > 0
        assert kept.is_nothing()
    assert keyed(client).status_code == 201


def test_a_refused_submission_leaves_its_key_free(client: FlaskClient) -> None:
    assert keyed(client, content=b"no picture").status_code == 422
    assert keyed(client, settings={"steps": 0}).status_code == 422
    assert keyed(client).status_code == 201


def test_a_repeat_is_answered_though_the_queue_is_full(
    client: FlaskClient, submit: Submit
) -> None:
    first = keyed(client).get_json()
    for _ in range(4):
        submit()
    assert keyed(client, key="another").status_code == 503
    assert keyed(client).get_json()["id"] == first["id"]


def test_the_key_of_a_deleted_job_makes_a_new_one(client: FlaskClient) -> None:
    first = keyed(client).get_json()
    client.post(first["links"]["cancel"])
    assert keyed(client).get_json()["state"] == "cancelled"
    client.delete(first["links"]["self"])
    again = keyed(client)
    assert again.status_code == 201
    assert again.get_json()["id"] != first["id"]


@pytest.mark.parametrize("key", ["", "a" * 256, "a key", "k\u00e9y"])
def test_a_key_that_is_none_is_refused_by_name(
    client: FlaskClient, kept: Kept, key: str
) -> None:
    answer = keyed(client, key=key)
    assert answer.status_code == 422
    assert "Idempotency-Key" in answer.get_json()["detail"]
    assert kept.is_nothing()


def test_a_retry_with_a_key_is_made_once(client: FlaskClient, submit: Submit) -> None:
    first, other = submit(), submit()
    for job in (first, other):
        client.post(job["links"]["cancel"])
    key = {"Idempotency-Key": "a-key"}
    made = client.post(first["links"]["retry"], headers=key)
    assert made.status_code == 201
    again = client.post(first["links"]["retry"], headers=key)
    assert again.status_code == 200
    assert again.get_json() == made.get_json()
    assert again.headers["Location"] == made.headers["Location"]
    # The key stands for this job, and for nothing else.
    assert client.post(other["links"]["retry"], headers=key).status_code == 409
    assert keyed(client).status_code == 409
    assert client.post(first["links"]["retry"]).status_code == 201


def test_a_retry_names_its_origin_even_when_that_is_gone(
    client: FlaskClient, submit: Submit
) -> None:
    first = submit()
    assert first["retry_of"] is None
    client.post(first["links"]["cancel"])
    again = client.post(first["links"]["retry"]).get_json()
    assert again["retry_of"] == first["id"]
    assert first["links"]["page"] in client.get(again["links"]["page"]).text
    client.delete(first["links"]["self"])
    assert client.get(again["links"]["self"]).get_json() == again


def test_a_retry_names_its_origin_even_if_that_is_deleted(
    client: FlaskClient, submit: Submit, worker: Worker
) -> None:
    old = finished(submit, worker)
    new = client.post(f"{old}/retry").get_json()
    assert client.delete(old).status_code == 204
    assert client.get(new["links"]["self"]).get_json()["retry_of"] in old


def test_what_is_accepted_is_not_told_to_come_again(client: FlaskClient) -> None:
    answer = client.post(JOBS, data=form())
    assert answer.status_code == 201
    assert "Retry-After" not in answer.headers
    assert answer.headers["X-RateLimit-Remaining"] == "119"


def test_a_job_keeps_the_estimate_of_its_submission(
    client: FlaskClient, submit: Submit, beat: Callable[..., None], worker: Worker
) -> None:
    beat("gpu-7")
    job = submit(settings={"steps": 100})
    assert JobBody.model_validate(job).estimate
    assert job["estimate"]["worker"] == "gpu-7"
    assert 1 < job["estimate"]["seconds"] < 60
    assert 10**8 < job["estimate"]["memory_bytes"] < 10**10
    beat("gpu-8", operations_per_second=1e15, bytes_per_second=1e15)
    worker.succeed(worker.claim())
    again = client.post(job["links"]["retry"]).get_json()
    for body in (client.get(job["links"]["self"]).get_json(), again):
        assert body["estimate"] == job["estimate"]


def test_a_job_that_has_not_ended_is_neither_retried_nor_deleted(
    client: FlaskClient, submit: Submit, kept: Kept
) -> None:
    links = submit()["links"]
    rows = kept.rows()
    for answer in (client.post(links["retry"]), client.delete(links["self"])):
        assert answer.status_code == 409
        assert answer.get_json()["code"] == "conflict"
        assert "queued" in answer.get_json()["detail"]
    assert kept.rows() == rows


def test_a_job_is_not_resumed_while_the_queue_is_full(
    client: FlaskClient, submit: Submit
) -> None:
    job = submit()
    assert client.post(job["links"]["pause"]).status_code == 202
    for _ in range(5):
        submit()
    answer = client.post(job["links"]["resume"])
    assert (answer.status_code, answer.get_json()["code"]) == (503, "queue_full")
    assert int(answer.headers["Retry-After"]) > 0
    assert client.get(job["links"]["self"]).get_json()["state"] == "paused"


def test_a_retry_is_refused_while_the_queue_is_full(
    client: FlaskClient, submit: Submit
) -> None:
    links = submit()["links"]
    client.post(links["cancel"])
    for _ in range(5):
        submit()
    answer = client.post(links["retry"])
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0


def test_a_deleted_job_is_gone_with_its_pictures(
    client: FlaskClient, submit: Submit, worker: Worker
) -> None:
    here = finished(submit, worker)
    answer = client.delete(here)
    assert (answer.status_code, answer.data) == (204, b"")
    for address in (here, f"{here}/result", f"{here}/content", f"{here}/snapshots/50"):
        assert client.get(address).status_code == 404
    assert client.delete(here).status_code == 404
    assert client.get(JOBS).get_json()["jobs"] == []


def test_pictures_are_served_whole_and_smaller(
    client: FlaskClient, submit: Submit, worker: Worker
) -> None:
    here = finished(submit, worker)
    for name, size in (
        ("result", (600, 400)),
        ("snapshots/50", (600, 400)),
        ("content", (96, 64)),
        ("styles/0", (64, 80)),
    ):
        whole = client.get(f"{here}/{name}")
        assert (whole.status_code, whole.mimetype) == (200, "image/png")
        assert int(whole.headers["Content-Length"]) == len(whole.data)
        assert Image.open(BytesIO(whole.data)).size == size
        small = client.get(f"{here}/{name}?size=128")
        assert (small.status_code, small.mimetype) == (200, "image/jpeg")
        assert max(Image.open(BytesIO(small.data)).size) == min(128, max(size))


@pytest.mark.parametrize(
    "name",
    [
        "result",
        "snapshots/50",
        "snapshots/99999999999999999999999",
        "snapshots/" + "9" * 3000,
        "snapshots/-1",
        "snapshots/0x10",
        "styles/1",
        "styles/8",
        "styles/99999999999999999999999",
        "nothing",
    ],
)
def test_pictures_that_are_not_there_are_not_found(
    client: FlaskClient, submit: Submit, name: str
) -> None:
    answer = client.get(f"{submit()['links']['self']}/{name}")
    assert answer.status_code in (404, 422)
    assert answer.mimetype == "application/problem+json"


BAD_IDS = [
    "../../x",
    "..%2f..%2fx",
    "%2e%2e/x",
    "a" * 5000,
    "%00",
    "a%00b",
    "%ff",
    "%ed%a0%80",
    "%F0%9F%98%80",
    "' or 1=1 --",
    "%0d%0aX-Injected: 1",
]
WITH_ID = [
    ("GET", ""),
    ("GET", "/result"),
    ("GET", "/content"),
    ("GET", "/styles/0"),
    ("GET", "/snapshots/1"),
    ("POST", "/cancel"),
    ("POST", "/retry"),
    ("DELETE", ""),
]


@pytest.mark.parametrize(("method", "name"), WITH_ID)
def test_ids_that_are_none_are_not_found(
    client: FlaskClient, method: str, name: str
) -> None:
    for job_id in BAD_IDS:
        answer = client.open(f"{JOBS}/{job_id}{name}", method=method)
        assert answer.status_code == 404
        assert answer.mimetype == "application/problem+json"
        assert answer.get_json()["code"] == "not_found"
        assert "X-Injected" not in answer.headers


def test_an_id_that_is_none_never_reaches_the_database(
    client: FlaskClient, asked: list[str]
) -> None:
    asked.clear()
    # PostgreSQL refuses NUL with an error that would be a 500.
    for method, name in WITH_ID:
        for job_id in BAD_IDS:
            client.open(f"{JOBS}/{job_id}{name}", method=method)
    client.get(f"{JOBS}?cursor=MSAA")
    assert client.get("/jobs/%00").status_code == 404
    assert client.get("/?from=%00").status_code == 404
    assert asked == []


def test_the_workers_seen_lately_are_listed(
    client: FlaskClient, submit: Submit, worker: Worker, database: Database
) -> None:
    assert client.get("/api/v1/workers").get_json() == {"workers": []}
    with database.write() as connection:
        for name, age in (("gpu-1", 1), ("gpu-2", 3), ("old", 3600)):
            connection.execute(
                insert(WorkerRow).values(
                    name=name,
                    host="castle",
                    device="H100",
                    memory_bytes=80 * 10**9,
                    budget_bytes=56 * 10**9,
                    started_at=now() - 7200,
                    seen_at=now() - age,
                )
            )
    job = submit()
    worker.snapshot(worker.claim(), 50)
    first, second = client.get("/api/v1/workers").get_json()["workers"]
    assert RFC_3339.fullmatch(first.pop("seen_at"))
    assert first == {
        "name": "gpu-1",
        "host": "castle",
        "device": "H100",
        "memory_bytes": 80 * 10**9,
        "budget_bytes": 56 * 10**9,
        "refuses": None,
        "drain": None,
        "job": job["id"],
        "steps_per_second": 8.1,
    }
    assert (second["name"], second["job"]) == ("gpu-2", None)
