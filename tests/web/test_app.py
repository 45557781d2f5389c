import re
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from werkzeug.test import run_wsgi_app

from stylequeue_shared.errors import BadConfiguration
from stylequeue_shared.settings import Settings
from stylequeue_web.app import Application, create_app
from stylequeue_web.rate_limits import SUBMISSIONS
from tests.web.conftest import JOBS, Worker, form

DESCRIPTION = "/api/v1/openapi.json"
load_all_checks()
CHECKS = [
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]


def limited(client: FlaskClient, path: str, count: int = 1, **options: Any) -> set[int]:
    """Send what cannot be accepted that often; return the statuses."""
    return {client.post(path, **options).status_code for _ in range(count)}


def test_submissions_of_one_address_are_limited(client: FlaskClient) -> None:
    allowed = int(SUBMISSIONS.split()[0])
    assert allowed == 120
    missing = f"{JOBS}/00000000-0000-0000-0000-000000000000"
    assert limited(client, JOBS, allowed - 20) == {400}
    assert limited(client, f"{missing}/retry", 20) == {404}
    answer = client.post(JOBS, data=form())
    assert answer.status_code == 429
    assert answer.mimetype == "application/problem+json"
    assert answer.get_json()["code"] == "too_many_requests"
    detail, seconds = answer.get_json()["detail"], answer.headers["Retry-After"]
    assert detail == (
        "Too many submissions from this address: 120 per 1 minute are allowed; "
        f"try again in {seconds} s."
    )
    assert 0 < int(seconds) <= 60
    # Whichever way they come; and nobody else, and nothing else, is held up.
    assert limited(client, f"{missing}/retry") == {429}
    assert limited(client, JOBS, environ_base={"REMOTE_ADDR": "192.0.2.7"}) == {400}
    assert limited(client, f"{missing}/cancel") == {404}
    assert client.get(JOBS).status_code == 200


def test_the_form_says_in_words_that_it_is_limited(client: FlaskClient) -> None:
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', client.get("/").text)
    assert found
    limited(client, JOBS, 120)
    answer = client.post("/", data={"csrf_token": found[1]})
    assert (answer.status_code, answer.mimetype) == (429, "text/html")
    assert "120 per 1 minute" in answer.text
    assert int(answer.headers["Retry-After"]) > 0


def test_the_address_is_not_what_a_header_claims(client: FlaskClient) -> None:
    for number in range(120):
        claimed = {"X-Forwarded-For": f"192.0.2.{number}"}
        assert limited(client, JOBS, headers=claimed) == {400}
    assert limited(client, JOBS, headers={"X-Forwarded-For": "198.51.100.1"}) == {429}


def test_a_database_without_tables_is_refused_at_the_start(tmp_path: Any) -> None:
    with pytest.raises(BadConfiguration, match="run: stylequeue migrate"):
        create_app(Settings(home=tmp_path))


def test_the_description_names_every_route_of_the_api(
    client: FlaskClient, app: Application
) -> None:
    description = client.get(DESCRIPTION).get_json()
    assert description["openapi"].startswith("3.1.")
    described = {
        (method.upper(), path)
        for path, operations in description["paths"].items()
        for method in operations
    }
    assert described == {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith("/api/v1/") and rule.rule != DESCRIPTION
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }


def test_the_description_says_which_pictures_may_be_a_tiff(client: FlaskClient) -> None:
    paths = client.get(DESCRIPTION).get_json()["paths"]
    kinds = {
        path.split("}/", 1)[1]: set(operations["get"]["responses"]["200"]["content"])
        for path, operations in paths.items()
        if re.search("/(result|content|snapshots/.*|styles/.*)$", path)
    }
    shown = {"image/png", "image/jpeg"}
    assert kinds == {
        "result": {*shown, "image/tiff"},
        "content": shown,
        "snapshots/{step}": shown,
        "styles/{number}": shown,
    }


def test_the_description_is_valid(app: Application) -> None:
    schemathesis.openapi.from_wsgi(DESCRIPTION, app).validate()


def test_errors_are_described_as_the_problem_details_that_they_are(
    client: FlaskClient,
) -> None:
    for operations in client.get(DESCRIPTION).get_json()["paths"].values():
        for operation in operations.values():
            for status in ("422", "4XX", "5XX"):
                content = operation["responses"][status]["content"]
                schema = content.pop("application/problem+json")["schema"]
                assert schema == {"$ref": "#/components/schemas/Problem"}
                assert content == {}


def test_whatever_is_asked_is_answered_as_described(
    app: Application, submit: Callable[..., dict[str, Any]], worker: Worker
) -> None:
    ours = submit(settings={"steps": 60})["id"]
    claim = worker.claim()
    worker.snapshot(claim, 50)
    worker.succeed(claim)

    def read_whole(environ: Any, start: Any) -> Any:
        # As a server does; schemathesis leaves files open.
        body, status, headers = run_wsgi_app(app, environ, buffered=True)
        start(status, headers.to_wsgi_list())
        return body

    described = schemathesis.openapi.from_wsgi(DESCRIPTION, read_whole)
    seen: set[int] = set()
    operations = [found.ok() for found in described.get_all_operations()]
    # Else the other operations would find nothing.
    for operation in sorted(operations, key=lambda one: one.label.startswith("DEL")):
        answer_as_described(operation, ours, seen)
    assert {200, 202, 204, 404, 422} <= seen


def answer_as_described(operation: Any, ours: str, seen: set[int]) -> None:
    """Ask for what the description allows and forbids, also of a job of ours."""

    @settings(
        max_examples=20,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(operation.as_strategy(generation_mode=m) for m in GenerationMode))
    def check(case: Any) -> None:
        for job_id in (None, ours):
            if job_id and "job_id" in case.path_parameters:
                case.path_parameters["job_id"] = job_id
            answer = case.call()
            seen.add(answer.status_code)
            # The queue is full some time; nothing else may be wrong with us.
            assert answer.status_code < 500 or "retry-after" in answer.headers
            case.validate_response(answer, checks=CHECKS)

    check()
