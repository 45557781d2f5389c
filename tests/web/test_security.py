import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from stylequeue_shared.settings import Settings, load_settings
from stylequeue_web.app import Application, create_app
from stylequeue_web.security import cookie_name, trusted_hosts
from tests.web.conftest import JOBS, Kept, close, form

CROSS_SITE = [
    {"Origin": "https://evil.example"},
    {"Origin": "http://localhost:9999"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "http://127.0.0.1"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://["},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"},
]
OWN = [
    {},
    {"Origin": "http://localhost"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"},
    {"Sec-Fetch-Site": "none"},
]
PATHS = ["/", "/jobs", JOBS, "/nowhere", f"{JOBS}/none", "/healthz", "/metrics"]
FILES = [
    "/static/theme.css",
    "/bootstrap/static/css/bootstrap.min.css",
    "/samples/night",
]
POSTS = ["cancel", "retry", "delete"]


@pytest.fixture
def token(client: FlaskClient) -> str:
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', client.get("/").text)
    assert found
    return found[1]


@pytest.mark.parametrize("headers", CROSS_SITE, ids=str)
def test_no_other_site_can_make_a_browser_change_anything(
    client: FlaskClient,
    submit: Callable[..., dict[str, Any]],
    kept: Kept,
    token: str,
    headers: dict[str, str],
) -> None:
    links = submit()["links"]
    rows = kept.rows()
    page = {"csrf_token": token}
    for answer in (
        client.post(JOBS, data=form(), headers=headers),
        client.post(links["cancel"], headers=headers),
        client.post(links["retry"], headers=headers),
        client.delete(links["self"], headers=headers),
    ):
        assert answer.status_code == 403
        assert answer.mimetype == "application/problem+json"
        assert answer.get_json()["code"] == "forbidden"
    for path in ("/", *(f"{links['page']}/{name}" for name in POSTS)):
        answer = client.post(path, data=page, headers=headers)
        assert (answer.status_code, answer.mimetype) == (403, "text/html")
    assert kept.rows() == rows
    assert client.get(links["self"]).get_json()["state"] == "queued"


@pytest.mark.parametrize("headers", OWN, ids=str)
def test_our_own_pages_and_programs_may_change_things(
    client: FlaskClient, token: str, headers: dict[str, str]
) -> None:
    answer = client.post(JOBS, data=form(), headers=headers)
    assert answer.status_code == 201
    cancel = f"{answer.get_json()['links']['page']}/cancel"
    answer = client.post(cancel, data={"csrf_token": token}, headers=headers)
    assert answer.status_code == 303


@pytest.mark.parametrize("headers", CROSS_SITE, ids=str)
def test_reading_is_open_to_links_from_elsewhere(
    client: FlaskClient, headers: dict[str, str]
) -> None:
    for path in ("/", "/jobs", JOBS):
        assert client.get(path, headers=headers).status_code == 200


def test_a_form_needs_its_token_and_the_api_none(
    client: FlaskClient, submit: Callable[..., dict[str, Any]], token: str
) -> None:
    links = submit()["links"]
    for wrong in ({}, {"csrf_token": ""}, {"csrf_token": "made up"}):
        for path in ("/", *(f"{links['page']}/{name}" for name in POSTS)):
            assert client.post(path, data=wrong).status_code == 400
    assert client.get(links["self"]).get_json()["state"] == "queued"
    assert client.post(links["cancel"]).status_code == 202
    assert client.post(f"{links['page']}/retry", data={"csrf_token": token}).location


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.", "10.0.0.1:8000", "[::2]"],
)
@pytest.mark.parametrize("path", ["/", "/jobs", JOBS, "/static/none", "/metrics"])
def test_a_name_that_is_not_ours_is_refused(
    client: FlaskClient, host: str, path: str
) -> None:
    answer = client.get(path, headers={"Host": host})
    assert answer.status_code == 400
    assert answer.headers["Content-Security-Policy"]
    if path.startswith("/api/"):
        assert answer.mimetype == "application/problem+json"
        assert answer.get_json()["code"] == "bad_request"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "LOCALHOST"])
@pytest.mark.parametrize("port", ["", ":8000"])
def test_the_names_of_this_machine_are_accepted(
    client: FlaskClient, host: str, port: str
) -> None:
    assert client.get(JOBS, headers={"Host": host + port}).status_code == 200
    origin = {"Host": host + port, "Origin": f"http://{host.lower()}{port}"}
    # Neither our origin nor a job: that it is looked for shows which check it passed.
    missing = f"{JOBS}/00000000-0000-0000-0000-000000000000"
    assert client.delete(missing, headers=origin).status_code == 404


@pytest.fixture
def public(installation: Settings) -> Iterator[Application]:
    app = create_app(
        load_settings(
            {
                "STYLEQUEUE_HOME": str(installation.home),
                "STYLEQUEUE_HOST": "0.0.0.0",
                "STYLEQUEUE_OPEN": "1",
                "STYLEQUEUE_SECRET_KEY": "a test's key, long enough",
                "STYLEQUEUE_TRUSTED_HOSTS": "Pictures.example, 192.0.2.7, "
                "2001:db8::7, .more.example",
            }
        )
    )
    yield app
    close(app)


def test_when_open_the_names_that_the_operator_gives_are_accepted(
    public: Application,
) -> None:
    client = public.test_client()
    for host in (
        "pictures.example:8000",
        "192.0.2.7",
        "[2001:db8::7]:8000",
        "one.more.example",
        "localhost",
        "127.0.0.1:80",
        socket.gethostname(),
        # Addresses of this machine: no name can be rebound to look like one.
        "198.51.100.9:8000",
        "[2001:db8::9]:8000",
    ):
        assert client.get(JOBS, headers={"Host": host}).status_code == 200
    foreign = ("evil.example", "www.pictures.example", "0.0.0.0", "1.2.3.4.example")
    for host in foreign:
        assert client.get(JOBS, headers={"Host": host}).status_code == 400


def test_the_address_that_is_listened_on_is_a_name_of_ours(tmp_path: Path) -> None:
    def hosts(host: str) -> list[str]:
        return trusted_hosts(
            Settings(home=tmp_path, host=host, open=True, secret_key="a test's")
        )

    assert "192.0.2.9" in hosts("192.0.2.9")
    assert "[2001:db8::1]" in hosts("2001:db8::1")
    assert not {"::", "[::]", "0.0.0.0", ""} & {*hosts("::"), *hosts("0.0.0.0")}


@pytest.mark.parametrize("path", [*PATHS, *FILES])
def test_every_answer_carries_the_headers_that_guard_it(
    client: FlaskClient, path: str
) -> None:
    headers = client.get(path).headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    for loophole in ("unsafe", "http:", "https:", "*"):
        assert loophole not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "same-origin"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(
    client: FlaskClient,
) -> None:
    name, flags = cookie_of(client.get("/"))
    assert re.fullmatch("stylequeue_[0-9a-f]{12}", name)
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= flags
    assert "Secure" not in flags
    assert not any(flag.startswith("Domain") for flag in flags)
    assert "Set-Cookie" not in client.get(JOBS).headers


def cookie_of(answer: Any) -> tuple[str, set[str]]:
    """Return the name of the cookie that an answer sets, and its flags."""
    cookie, *flags = answer.headers["Set-Cookie"].split(";")
    return cookie.partition("=")[0], {flag.strip() for flag in flags}


def test_two_installations_on_one_host_have_cookies_of_their_own(
    tmp_path: Path,
) -> None:
    names = {cookie_name(Settings(home=tmp_path / home)) for home in "ab"}
    assert len(names) == 2
    # All web hosts of one installation have its key, and so its name.
    same = [
        cookie_name(Settings(home=tmp_path / home, secret_key="one key"))
        for home in "cd"
    ]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://localhost", "localhost:443"),
        ("http://localhost", "localhost:80"),
        ("http://localhost:80", "localhost"),
        ("http://LocalHost:8000", "localhost:8000"),
        ("http://localhost.:8000", "localhost:8000"),
        ("http://[::1]", "[::1]:80"),
    ],
)
def test_an_origin_may_leave_out_what_the_host_says(
    client: FlaskClient, origin: str, host: str
) -> None:
    headers = {"Origin": origin, "Host": host}
    missing = f"{JOBS}/00000000-0000-0000-0000-000000000000"
    assert client.delete(missing, headers=headers).status_code == 404
    other = {"Origin": origin, "Host": "localhost:9999"}
    assert client.delete(missing, headers=other).status_code == 403
