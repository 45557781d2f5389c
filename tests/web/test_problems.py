from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from structlog.testing import capture_logs

from stylequeue_shared.errors import Conflict, DiskFull, MachineError, NumericalError
from stylequeue_shared.settings import Settings
from stylequeue_web.app import Application
from stylequeue_web.problems import MEDIA_TYPE
from stylequeue_web.services import NAME
from tests.web.conftest import JOBS, form

MISSING = f"{JOBS}/00000000-0000-0000-0000-000000000000"
JSON = {"Accept": "application/json"}


@pytest.fixture
def raising(app: Application) -> Callable[[Exception], None]:
    """Lets `/broken`, as a page and in the API, raise the error."""

    def prepare(error: Exception) -> None:
        def broken() -> None:
            raise error

        for path in ("/broken", "/api/v1/broken"):
            app.add_url_rule(path, path, broken)

    return prepare


@pytest.fixture
def outage(app: Application, installation: Settings) -> Iterator[Callable[[], None]]:
    """Takes the database away, which is a file here, and lets it come back."""
    path = installation.home / "stylequeue.db"
    away = installation.home / "away"

    def begin() -> None:
        app.extensions[NAME].database.close()
        path.rename(away)
        path.mkdir()

    yield begin
    if away.exists():
        path.rmdir()
        away.rename(path)


@pytest.mark.parametrize(
    "path", ["/api/", "/api/v1", "/api/v1/", "/api/v2/jobs", f"{JOBS}/", "/api/v1/none"]
)
def test_an_unknown_address_of_the_api_is_a_problem(
    client: FlaskClient, path: str
) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.mimetype) == (404, MEDIA_TYPE)
    assert answer.get_json() == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": answer.get_json()["detail"],
        "code": "not_found",
    }


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", JOBS, {"GET", "HEAD", "OPTIONS", "POST"}),
        ("PUT", MISSING, {"GET", "HEAD", "OPTIONS", "DELETE"}),
        ("GET", f"{MISSING}/cancel", {"OPTIONS", "POST"}),
        ("POST", "/api/v1/workers", {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/healthz", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(
    client: FlaskClient, method: str, path: str, allowed: set[str]
) -> None:
    answer = client.open(path, method=method)
    assert (answer.status_code, answer.mimetype) == (405, MEDIA_TYPE)
    assert answer.get_json()["code"] == "method_not_allowed"
    assert set(answer.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("a secret"), NumericalError("a secret")]
)
def test_a_defect_is_logged_and_kept_from_the_client(
    client: FlaskClient, raising: Callable[[Exception], None], error: Exception
) -> None:
    raising(error)
    with capture_logs() as logs:
        answer = client.get("/api/v1/broken")
        page = client.get("/broken")
    assert (answer.status_code, answer.mimetype) == (500, MEDIA_TYPE)
    assert answer.get_json()["code"] == "internal"
    assert (page.status_code, page.mimetype) == (500, "text/html")
    assert "It has been logged" in page.text
    for text in (answer.text, page.text):
        assert "secret" not in text
        assert type(error).__name__ not in text
    assert [(log["event"], log["log_level"], log["path"]) for log in logs] == [
        ("request_failed", "error", "/api/v1/broken"),
        ("request_failed", "error", "/broken"),
    ]
    assert all(log["exc_info"] is error for log in logs)


@pytest.mark.parametrize(
    ("error", "seconds"),
    [(MachineError("no room"), "30"), (DiskFull("no room"), "300")],
)
def test_what_the_machine_cannot_do_now_may_be_tried_again(
    client: FlaskClient,
    raising: Callable[[Exception], None],
    error: MachineError,
    seconds: str,
) -> None:
    raising(error)
    for path in ("/api/v1/broken", "/broken"):
        answer = client.get(path)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == seconds
        assert "no room" in answer.text


def test_what_the_user_did_wrong_needs_no_second_try(
    client: FlaskClient, raising: Callable[[Exception], None]
) -> None:
    raising(Conflict("not in this state"))
    with capture_logs() as logs:
        answer = client.get("/api/v1/broken")
    assert answer.status_code == 409
    assert answer.get_json()["detail"] == "not in this state"
    assert "Retry-After" not in answer.headers
    assert logs == []


def test_without_the_database_everybody_is_asked_to_come_back(
    client: FlaskClient, outage: Callable[[], None], installation: Settings
) -> None:
    outage()
    with capture_logs() as logs:
        answers = [
            client.get(JOBS),
            client.get(MISSING),
            client.get(f"{MISSING}/result"),
            client.post(JOBS, data=form()),
            client.delete(MISSING),
            client.get("/metrics"),
        ]
        page = client.get("/jobs")
    assert {answer.status_code for answer in [*answers, page]} == {503}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in [*answers, page])
    assert {answer.mimetype for answer in answers} == {MEDIA_TYPE}
    assert page.mimetype == "text/html"
    assert "try again" in page.text
    for answer in [*answers, page]:
        assert "sqlite" not in answer.text.lower()
        assert str(installation.home) not in answer.text
    assert {log["event"] for log in logs} == {"database_away"}
    # What needs no database goes on.
    assert client.get("/healthz").status_code == 200
    assert client.get("/").status_code == 200


def test_an_unknown_page_is_a_page_or_json_as_asked(client: FlaskClient) -> None:
    answer = client.get("/nowhere")
    assert (answer.status_code, answer.mimetype) == (404, "text/html")
    answer = client.get("/nowhere", headers=JSON)
    assert (answer.status_code, answer.mimetype) == (404, "application/json")
    body: dict[str, Any] = answer.get_json()
    assert body["errors"] == {}
    assert body["message"]
