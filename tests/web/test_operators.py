import re
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import update

from stylequeue_shared import jobs
from stylequeue_shared.database import Database
from stylequeue_shared.models import Job
from stylequeue_shared.settings import Settings
from stylequeue_web.app import Application, create_app
from stylequeue_web.schemas import JobBody
from stylequeue_web.security import cookie_name
from tests.web.conftest import JOBS, Client, Worker, close, form

Submit = Callable[..., dict[str, Any]]
TOKEN = "a-token-of-operators"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
API = "/api/v1"


@pytest.fixture
def installation(installation: Settings) -> Settings:
    return installation.model_validate(
        {**installation.model_dump(), "operator_token": TOKEN}
    )


def calls(job_id: str) -> list[str]:
    return [
        f"{API}/jobs/{job_id}/front",
        f"{API}/jobs/{job_id}/priority",
        f"{API}/queue/pause",
        f"{API}/queue/resume",
        f"{API}/workers/gpu-1/drain",
    ]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer a-token-of-operatorz"},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic YTph"},
        {"Authorization": "Bearer ünïcode"},
    ],
)
def test_only_who_sends_the_token_operates(
    client: FlaskClient,
    submit: Submit,
    database: Database,
    beat: Callable[..., None],
    headers: dict[str, str],
) -> None:
    job_id = submit()["id"]
    beat("gpu-1")
    before = client.get(f"{JOBS}/{job_id}").data
    for address in calls(job_id):
        answer = client.post(address, headers=headers, json={"priority": "high"})
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].lower().startswith("bearer")
        assert TOKEN not in answer.text
    assert client.get(f"{JOBS}/{job_id}").data == before
    assert jobs.claim(database, "gpu-1", lease_seconds=30)


def test_without_a_token_set_nobody_operates(installation: Settings) -> None:
    closed = installation.model_copy(update={"operator_token": None})
    app = create_app(closed)
    client = app.test_client()
    for headers in ({}, BEARER, {"Authorization": "Bearer "}):
        answer = client.post(f"{API}/queue/pause", headers=headers)
        assert answer.status_code == 403
        assert "STYLEQUEUE_OPERATOR_TOKEN" in answer.get_json()["detail"]
    assert "For operators" not in client.get("/workers").text
    close(app)


WRONG = {"Authorization": "Bearer wrong"}
TOO_MANY = "Too many wrong operator tokens from this address; try again in"


def guess(client: FlaskClient, page: Callable[..., Any], way: str) -> Any:
    """Show a wrong token by one of the ways there are."""
    if way == "call":
        return client.post(f"{API}/queue/pause", headers=WRONG)
    if way == "owner":
        return client.post(JOBS, data=form(owner="ann"), headers=WRONG)
    if way == "metrics":
        return client.get("/metrics", headers=WRONG)
    return page("/workers/sign-in", token="wrong")


@pytest.mark.parametrize("way", ["call", "owner", "metrics", "page"])
def test_wrong_tokens_are_limited_and_the_right_one_never_is(
    client: FlaskClient, page: Callable[..., Any], way: str
) -> None:
    found = [guess(client, page, way) for _ in range(22)]
    assert [answer.status_code for answer in found] == [401] * 20 + [429] * 2
    assert TOO_MANY in found[-1].text
    assert 0 < int(found[-1].headers["Retry-After"]) <= 60
    # By every other way they are limited, too, and for nobody else.
    for other in ("call", "owner", "metrics", "page"):
        assert guess(client, page, other).status_code == 429
    elsewhere = {"REMOTE_ADDR": "192.0.2.7"}
    answer = client.post(
        f"{API}/queue/pause", headers=WRONG, environ_overrides=elsewhere
    )
    assert answer.status_code == 401
    assert client.post(f"{API}/queue/pause", headers=BEARER).status_code == 202
    given = client.post(JOBS, data=form(owner="ann"), headers=BEARER)
    assert given.status_code == 201
    assert client.get("/metrics", headers=BEARER).status_code == 200
    assert page("/workers/sign-in", token=TOKEN).status_code == 303


def test_who_shows_no_token_guesses_nothing(client: FlaskClient) -> None:
    found = {client.post(f"{API}/queue/pause").status_code for _ in range(25)}
    assert found == {401}
    assert client.post(f"{API}/queue/pause", headers=WRONG).status_code == 401


def test_a_job_is_moved_between_classes_and_to_the_front(
    client: FlaskClient, submit: Submit, database: Database
) -> None:
    first, second, third = (submit() for _ in range(3))
    answer = client.post(
        f"{JOBS}/{third['id']}/priority", headers=BEARER, json={"priority": "high"}
    )
    assert answer.status_code == 202
    assert JobBody.model_validate(answer.get_json()).priority == "high"
    answer = client.post(f"{JOBS}/{second['id']}/front", headers=BEARER)
    assert answer.status_code == 202
    for expected in (second, third, first):
        held = jobs.claim(database, "gpu-1", lease_seconds=30)
        assert held
        assert held.job_id == expected["id"]


@pytest.mark.parametrize(
    "body", [{}, {"priority": "urgent"}, {"priority": None}, [], "high"]
)
def test_an_unknown_priority_is_refused(
    client: FlaskClient, submit: Submit, body: object
) -> None:
    job = submit()
    address = f"{JOBS}/{job['id']}/priority"
    assert client.post(address, headers=BEARER, json=body).status_code == 422
    assert client.get(job["links"]["self"]).get_json()["priority"] == "normal"


def test_a_job_that_does_not_wait_has_no_turn_to_change(
    client: FlaskClient, submit: Submit, worker: Worker
) -> None:
    job_id = submit()["id"]
    worker.claim()
    answer = client.post(f"{JOBS}/{job_id}/front", headers=BEARER)
    assert (answer.status_code, answer.get_json()["code"]) == (409, "conflict")


def test_the_queue_is_paused_and_goes_on(
    client: FlaskClient, submit: Submit, database: Database
) -> None:
    submit()
    answer = client.post(f"{API}/queue/pause", headers=BEARER)
    assert (answer.status_code, answer.get_json()) == (
        202,
        {"paused": True, "waiting": 1},
    )
    assert client.get(f"{API}/queue").get_json() == answer.get_json()
    assert "none starts" in client.get("/workers").text
    assert jobs.claim(database, "gpu-1", lease_seconds=30) is None
    answer = client.post(f"{API}/queue/resume", headers=BEARER)
    assert answer.get_json() == {"paused": False, "waiting": 1}
    assert jobs.claim(database, "gpu-1", lease_seconds=30)


def test_a_worker_is_drained(
    client: FlaskClient, submit: Submit, database: Database, beat: Callable[..., None]
) -> None:
    beat("gpu-1")
    submit()
    address = f"{API}/workers/gpu-1/drain"
    (found,) = client.post(address, headers=BEARER).get_json()["workers"]
    assert (found["name"], found["drain"]) == ("gpu-1", "finish")
    assert jobs.claim(database, "gpu-1", lease_seconds=30) is None
    answer = client.post(f"{address}?running=hand_back", headers=BEARER)
    assert answer.get_json()["workers"][0]["drain"] == "hand_back"
    assert client.post(f"{address}?running=on", headers=BEARER).status_code == 422
    gone = client.post(f"{API}/workers/gpu-9/drain", headers=BEARER)
    assert gone.status_code == 404


def test_operators_submit_for_an_owner_and_with_a_priority(client: FlaskClient) -> None:
    given = {"owner": "ann@castle", "priority": "low"}
    answer = client.post(JOBS, data=form(**given), headers=BEARER)
    assert answer.status_code == 201
    job = answer.get_json()
    assert {name: job[name] for name in given} == given
    assert client.post(JOBS, data=form(**given)).status_code == 401


def test_who_gives_neither_has_no_owner_and_the_normal_priority(submit: Submit) -> None:
    job = submit()
    assert (job["owner"], job["priority"]) == (None, "normal")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("owner", ""),
        ("owner", "ann bob"),
        ("owner", "a" * 65),
        ("owner", "ann\n"),
        ("owner", "änn"),
        ("priority", ""),
        ("priority", "urgent"),
    ],
)
def test_an_owner_or_priority_that_is_none_is_refused_by_name(
    client: FlaskClient, name: str, value: str, kept: Any
) -> None:
    answer = client.post(JOBS, data=form(**{name: value}), headers=BEARER)
    assert answer.status_code == 422
    assert answer.get_json()["field"] == name
    assert kept.is_nothing()


@pytest.fixture
def page(client: FlaskClient) -> Callable[..., Any]:
    """Post a form of a page, with the token that guards it."""

    def send(address: str, **fields: str) -> Any:
        token = re.search(r'name="csrf_token" value="([^"]+)"', visited(client))
        assert token
        return client.post(address, data={"csrf_token": token[1], **fields})

    return send


def visited(client: FlaskClient) -> str:
    return client.get("/workers").text


def test_operators_sign_in_on_the_page_of_the_workers(
    client: FlaskClient,
    page: Callable[..., Any],
    submit: Submit,
    database: Database,
    beat: Callable[..., None],
) -> None:
    beat("gpu-1")
    job = submit()
    assert "Pause the queue" not in visited(client)
    assert page("/workers/queue/pause").status_code == 403
    assert page("/workers/sign-in", token="wrong").status_code == 401
    assert page("/workers/sign-in", token=TOKEN).location == "/workers"
    assert "Pause the queue" in visited(client)
    assert TOKEN not in visited(client)
    assert page("/workers/queue/pause").status_code == 303
    assert "Let the queue go on" in visited(client)
    assert page("/workers/queue/go-on").status_code == 404
    assert "Let the queue go on" in visited(client)
    assert page("/workers/queue/resume").status_code == 303
    assert page(f"/jobs/{job['id']}/priority", priority="low").status_code == 303
    assert page(f"/jobs/{job['id']}/priority", priority="x").status_code == 400
    assert "<option selected>low</option>" in client.get(job["links"]["page"]).text
    assert page(f"/jobs/{job['id']}/front").status_code == 303
    assert page("/workers/gpu-1/drain", running="finish").status_code == 303
    assert jobs.claim(database, "gpu-1", lease_seconds=30) is None
    assert page("/workers/sign-out").status_code == 303
    assert page("/workers/queue/pause").status_code == 403
    assert "Put in front" not in client.get(job["links"]["page"]).text


def test_a_new_token_signs_everybody_out(
    client: FlaskClient, page: Callable[..., Any], installation: Settings
) -> None:
    page("/workers/sign-in", token=TOKEN)
    name = cookie_name(installation)
    cookie = client.get_cookie(name)
    assert cookie
    changed = installation.model_validate(
        {**installation.model_dump(), "operator_token": "another-token-of-theirs"}
    )
    app: Application = create_app(changed)
    app.test_client_class = Client
    other = app.test_client()
    other.set_cookie(name, cookie.value)
    assert "Pause the queue" not in visited(other)
    close(app)


def test_another_site_cannot_use_an_operator_s_cookie(
    client: FlaskClient, page: Callable[..., Any]
) -> None:
    page("/workers/sign-in", token=TOKEN)
    foreign = {"Origin": "https://elsewhere.example"}
    assert client.post("/workers/queue/pause", headers=foreign).status_code == 403
    assert client.post("/workers/queue/pause").status_code == 400
    # The API knows no cookies.
    assert client.post(f"{API}/queue/pause").status_code == 401


def test_the_workers_page_says_what_each_does(
    client: FlaskClient,
    submit: Submit,
    worker: Worker,
    database: Database,
    beat: Callable[..., None],
) -> None:
    assert "No worker was seen" in visited(client)
    beat("gpu-1")
    beat("gpu-2", refuses="3 jobs in a row failed here")
    job = submit()
    worker.snapshot(worker.claim(), 50)
    seen = visited(client)
    assert f'href="{job["links"]["page"]}"' in seen
    assert "Paints" in seen
    assert "8.1" in seen
    assert "Takes no jobs" in seen
    assert "3 jobs in a row failed here" in seen
    with database.write() as connection:
        connection.execute(update(Job).values(state="cancelled"))
    assert "Idle" in visited(client)
