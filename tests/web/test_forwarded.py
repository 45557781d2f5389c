"""Who is believed about the client, and where the pages are."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import request
from flask.testing import FlaskClient

from stylequeue_shared.errors import BadConfiguration
from stylequeue_shared.settings import Settings
from stylequeue_web import rate_limits
from stylequeue_web.app import Application, create_app
from tests.web.conftest import JOBS, Client, close, form
from tests.web.test_security import cookie_of

PROXIES = ("127.0.0.1", "10.0.0.0/8", "fd00::/8")
MISSING = f"{JOBS}/00000000-0000-0000-0000-000000000000"
Serve = Callable[..., FlaskClient]


@pytest.fixture
def serve(installation: Settings) -> Iterator[Serve]:
    """Serve with more settings; `/seen` tells what the application sees."""
    opened: list[Application] = []

    def start(**more: Any) -> FlaskClient:
        given = {**installation.model_dump(exclude_unset=True), **more}
        app = create_app(Settings.model_validate(given))
        app.test_client_class = Client
        app.add_url_rule("/seen", "seen", seen)
        opened.append(app)
        return app.test_client()

    yield start
    for app in opened:
        close(app)


def seen() -> dict[str, Any]:
    claims = [name for name in dict(request.headers) if "Forwarded" in name]
    return {
        "address": request.remote_addr,
        "client": rate_limits.client(),
        "url": request.base_url,
        "claims": claims,
    }


def look(client: FlaskClient, peer: str, **headers: str) -> dict[str, Any]:
    """Return what is seen of a request that a peer sends with such headers."""
    given = {f"X-Forwarded-{name.title()}": value for name, value in headers.items()}
    answer = client.get("/seen", headers=given, environ_overrides={"REMOTE_ADDR": peer})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.get_json()
    # Whoever is believed: what is left of the headers is nobody's word.
    assert found.pop("claims") == []
    return found


EVERYTHING = {
    "for_": "203.0.113.9",
    "proto": "https",
    "host": "127.0.0.1:444",
    "port": "443",
    "prefix": "/queue",
}


def everything(**more: str) -> dict[str, str]:
    return {name.rstrip("_"): value for name, value in {**EVERYTHING, **more}.items()}


@pytest.mark.parametrize("peer", ["203.0.113.1", "", "unix:", "11.0.0.1", "fe80::1"])
def test_what_a_stranger_forwards_is_ignored(serve: Serve, peer: str) -> None:
    found = look(serve(trusted_proxies=PROXIES), peer, **everything())
    assert (found["address"], found["url"]) == (peer, "http://localhost/seen")


def test_without_trusted_proxies_nobody_is_believed(serve: Serve) -> None:
    found = look(serve(), "127.0.0.1", **everything())
    assert found["url"] == "http://localhost/seen"
    assert found["address"] == "127.0.0.1"


@pytest.mark.parametrize(
    "peer", ["127.0.0.1", "::ffff:127.0.0.1", "10.1.2.3", "fd00::1"]
)
def test_a_trusted_proxy_tells_address_scheme_host_port_and_prefix(
    serve: Serve, peer: str
) -> None:
    found = look(serve(trusted_proxies=PROXIES), peer, **everything())
    assert found["address"] == "203.0.113.9"
    assert found["url"] == "https://127.0.0.1/queue/seen"


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        # The client may claim what it likes, before the first proxy of ours.
        ("6.6.6.6, 203.0.113.9", "203.0.113.9"),
        ("6.6.6.6, 203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("6.6.6.6, 203.0.113.9, 10.0.0.3, 10.0.0.2", "203.0.113.9"),
        ("10.0.0.9, 203.0.113.9, 10.0.0.2", "203.0.113.9"),
        # Proxies also write a port.
        ("203.0.113.9:1234, 10.0.0.2:5678", "203.0.113.9:1234"),
        # A request of a proxy's own, or of its host.
        ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("unknown", "unknown"),
    ],
)
def test_as_many_proxies_are_believed_as_are_trusted_in_a_row(
    serve: Serve, forwarded: str, address: str
) -> None:
    client = serve(trusted_proxies=PROXIES)
    assert look(client, "10.0.0.1", **{"for": forwarded})["address"] == address


def test_a_header_that_inner_proxies_leave_alone_holds(serve: Serve) -> None:
    client = serve(trusted_proxies=PROXIES)
    forwarded = {"for": "203.0.113.9, 10.0.0.2", "proto": "https"}
    found = look(client, "10.0.0.1", **forwarded)
    assert found["url"].startswith("https://")
    # And one that each of them adds to, too.
    found = look(client, "10.0.0.1", **{**forwarded, "proto": "https, http"})
    assert found["url"].startswith("https://")


@pytest.mark.parametrize(
    "wrong",
    [
        {"proto": "javascript"},
        {"port": "80; evil"},
        {"prefix": "//evil.example"},
        {"prefix": "https://evil.example"},
        {"prefix": "/../a"},
        {"prefix": "/a b"},
        {"prefix": "queue"},
        {"proto": "", "port": "", "prefix": "", "host": ""},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_ignored_even_from_a_proxy(
    serve: Serve, wrong: dict[str, str]
) -> None:
    found = look(serve(trusted_proxies=PROXIES), "10.0.0.1", **wrong)
    assert found["url"] == "http://localhost/seen"


def test_a_host_that_is_not_ours_is_refused_also_when_it_is_forwarded(
    serve: Serve,
) -> None:
    client = serve(trusted_proxies=PROXIES)
    forwarded = {"X-Forwarded-Host": "evil.example"}
    assert client.get(JOBS, headers=forwarded).status_code == 400
    stranger = {"REMOTE_ADDR": "203.0.113.1"}
    answer = client.get(JOBS, headers=forwarded, environ_overrides=stranger)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("203.0.113.9:1234", "203.0.113.9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::7", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::7]:443", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::7", "2001:db8:1:3::/64"),
        ("unknown", "unknown"),
    ],
)
def test_a_client_is_its_address_or_its_ipv6_network(
    serve: Serve, address: str, client: str
) -> None:
    found = look(serve(trusted_proxies=PROXIES), "10.0.0.1", **{"for": address})
    assert found["client"] == client


def test_clients_behind_one_proxy_are_limited_each_for_itself(serve: Serve) -> None:
    client = serve(trusted_proxies=PROXIES)

    def submit(address: str) -> int:
        headers = {"X-Forwarded-For": address}
        return client.post(JOBS, headers=headers).status_code

    assert {submit("203.0.113.1") for _ in range(120)} == {400}
    assert submit("203.0.113.1") == 429
    assert submit("203.0.113.2") == 400
    # The limited one's claims do not help it.
    assert submit("6.6.6.6, 203.0.113.1") == 429


PUBLIC = "https://styles.example/queue"
FROM_PUBLIC = {"Origin": "https://styles.example", "Host": "styles.example"}


@pytest.mark.parametrize(
    "host", ["styles.example", "styles.example:443", "127.0.0.1:8000"]
)
@pytest.mark.parametrize("path", ["/seen", "/queue/seen"])
def test_the_public_url_holds_whatever_the_proxy_says_or_leaves(
    serve: Serve, host: str, path: str
) -> None:
    client = serve(public_url=PUBLIC, trusted_proxies=PROXIES)
    for forwarded in ({}, {"X-Forwarded-Proto": "http", "X-Forwarded-Prefix": "/no"}):
        answer = client.get(path, headers={"Host": host, **forwarded})
        assert answer.get_json()["url"] == f"{PUBLIC}/seen"


def test_the_path_of_the_public_url_is_taken_off_whole_only(serve: Serve) -> None:
    client = serve(public_url=PUBLIC)
    statuses = {
        path: client.get(path).status_code
        for path in ("/queue", "/queue/", "/", "/queuejobs", "/queue/queue/jobs")
    }
    assert list(statuses.values()) == [200, 200, 200, 404, 404]


def test_a_public_path_that_is_an_address_of_ours_is_refused(serve: Serve) -> None:
    for path in ("jobs", "api/x", "static", "workers"):
        with pytest.raises(BadConfiguration, match=r"STYLEQUEUE_PUBLIC_URL: .* itself"):
            serve(public_url=f"https://styles.example/{path}")


def test_the_public_host_is_trusted_and_others_still_are_not(serve: Serve) -> None:
    client = serve(public_url=PUBLIC)
    assert client.get(JOBS, headers={"Host": "styles.example"}).status_code == 200
    assert client.get(JOBS, headers={"Host": "evil.example"}).status_code == 400


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("https://styles.example", "styles.example", 404),
        # A proxy that names another host, or its own port.
        ("https://styles.example", "127.0.0.1:8000", 404),
        ("https://styles.example", "styles.example:8443", 404),
        ("https://styles.example:443", "styles.example", 404),
        # Whoever asks from this machine, past the proxy.
        ("http://127.0.0.1:8000", "127.0.0.1:8000", 404),
        ("http://styles.example", "styles.example", 403),
        ("https://evil.example", "styles.example", 403),
        ("https://styles.example:8443", "styles.example", 403),
        ("null", "styles.example", 403),
    ],
)
def test_pages_of_the_public_url_and_no_others_may_change_things(
    serve: Serve, origin: str, host: str, status: int
) -> None:
    client = serve(public_url=PUBLIC)
    answer = client.delete(MISSING, headers={"Origin": origin, "Host": host})
    assert answer.status_code == status


@pytest.mark.parametrize(
    "settings", [{"public_url": PUBLIC}, {"trusted_proxies": PROXIES}], ids=str
)
def test_under_tls_and_a_path_the_cookie_is_kept_to_both(
    serve: Serve, settings: dict[str, Any]
) -> None:
    forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/queue/"}
    _, flags = cookie_of(serve(**settings).get("/", headers=forwarded))
    assert {"Secure", "Path=/queue", "HttpOnly", "SameSite=Lax"} <= flags


@pytest.mark.parametrize(
    "settings", [{"public_url": PUBLIC}, {"trusted_proxies": PROXIES}], ids=str
)
def test_every_address_that_leaves_has_the_path(
    serve: Serve, settings: dict[str, Any]
) -> None:
    client = serve(**settings)
    forwarded = {"X-Forwarded-Prefix": "/queue"}

    def ask(path: str) -> Any:
        answer = client.get(path, headers=forwarded)
        assert answer.status_code == 200
        return answer

    answer = client.post(JOBS, data=form(), headers=forwarded)
    client.post(JOBS, data=form(), headers=forwarded)
    job = answer.get_json()
    assert answer.headers["Location"] == job["links"]["self"]
    assert job["links"]["self"] == f"/queue{JOBS}/{job['id']}"
    assert all(link.startswith("/queue/") for link in job["links"].values())
    assert ask(f"{JOBS}?limit=1").get_json()["next"].startswith(f"/queue{JOBS}?")
    for path in ("/", "/jobs", f"/jobs/{job['id']}", "/workers"):
        page = ask(path).text
        addresses = re.findall(r'\s(?:href|src|action|data-url)="([^"#]*)"', page)
        assert len(addresses) > 5
        assert not [one for one in addresses if not one.startswith("/queue/")]
    server = ask("/api/v1/openapi.json").get_json()["servers"][0]["url"]
    assert server == (settings.get("public_url") or "/queue")
