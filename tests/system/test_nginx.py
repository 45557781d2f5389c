"""Behind a real nginx, set up as the docs say: TLS, a path, and many clients."""

import http.client
import json
import re
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest
import trustme
from playwright.sync_api import expect
from werkzeug.test import encode_multipart

from bench.seaweedfs import free_ports
from stylequeue_shared.migrate import migrate
from stylequeue_shared.settings import Settings
from tests.nginx import behind_tls, documented, running_nginx
from tests.system.browser import Visit, chromium
from tests.system.running import Web
from tests.system.test_browser import choose_samples
from tests.web.conftest import JOBS
from tests.web.test_form_pictures import fields
from tests.web.test_server import wait_for
from tests.web.test_uploads import MULTIPART, whole

TOKEN = "a-token-of-operators"
PAUSE = "/queue/api/v1/queue/pause"
# What a proxy says that was set up by somebody who did not read the docs.
TOLD = re.compile(r"^ *proxy_set_header (?!X-Forwarded-For).*\n", re.MULTILINE)
WAYS = ("headers", "public_url")


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    text: str


class Site(NamedTuple):
    """One address of an installation: by TLS through nginx, or straight to us."""

    port: int
    tls: ssl.SSLContext | None = None

    def ask(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        client: str = "127.0.0.1",
        **headers: str,
    ) -> Answer:
        where = ("127.0.0.1", self.port)
        options = {"timeout": 60, "source_address": (client, 0)}
        connection = (
            http.client.HTTPSConnection(*where, context=self.tls, **options)
            if self.tls
            else http.client.HTTPConnection(*where, **options)
        )
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
            return Answer(answer.status, answer.headers, text)
        finally:
            connection.close()


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Site]]:
    """An installation that believes nginx, and one that has a public URL.

    The nginx of the second leaves the path, names a port of its own, and says of the
    request only where it comes from.
    """
    folder = tmp_path_factory.mktemp("nginx")
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    ports = dict(zip(("headers", "public_url"), free_ports(2), strict=True))
    direct = dict(zip(ports, free_ports(2), strict=True))
    given = {"home": folder, "operator_token": TOKEN, "trusted_proxies": ("127.0.0.1",)}
    migrate(Settings(home=folder).database_url)
    public = f"https://localhost:{ports['public_url']}/queue"
    settings = (
        Settings(port=direct["headers"], **given),
        Settings(port=direct["public_url"], public_url=public, **given),
    )
    servers = {
        way: documented(behind_tls(folder, authority, ports[way], direct[way]))
        for way in ports
    }
    untold = TOLD.sub("", servers["public_url"]).replace(
        "proxy_http_version 1.1;",
        "proxy_http_version 1.1; proxy_set_header Host $host:8443;",
    )
    servers["public_url"] = re.sub(r"(proxy_pass [^;]*)/;", r"\1;", untold)
    with ExitStack() as stack:
        webs = [Web(one) for one in settings]
        for web in webs:
            stack.callback(web.kill)
        stack.enter_context(running_nginx(folder, "\n".join(servers.values())))
        wait_for(lambda: all(web.is_up() for web in webs), 90)
        yield {
            **{way: Site(port, context) for way, port in ports.items()},
            **{f"direct {way}": Site(port) for way, port in direct.items()},
        }


@pytest.mark.parametrize("way", WAYS)
def test_a_form_is_submitted_by_tls_under_a_path(
    sites: dict[str, Site], way: str
) -> None:
    site = sites[way]
    page = site.ask("GET", "/queue/", Host=f"localhost:{site.port}")
    assert page.status == 200
    cookie = page.headers["Set-Cookie"]
    flags = {flag.strip() for flag in cookie.split(";")[1:]}
    assert {"Secure", "Path=/queue", "HttpOnly", "SameSite=Lax"} <= flags
    for pattern, kind in ((r'[^"]*\.css', "text/css"), (r'[^"]*\.js', "javascript")):
        found = re.findall(f'"({pattern})"', page.text)
        assert found
        for address in found:
            answer = site.ask("GET", address)
            assert (answer.status, address[:7]) == (200, "/queue/")
            assert kind in answer.headers["Content-Type"]

    filled = fields(page.text) | {"style_sample": "night", "content_sample": "cat"}
    boundary, body = encode_multipart(filled)
    headers = {
        "Host": f"localhost:{site.port}",
        "Cookie": cookie.partition(";")[0],
        "Content_Type": f"multipart/form-data; boundary={boundary}",
        "Sec_Fetch_Site": "same-origin",
    }
    (action,) = re.findall(r'<form id="new-job"[^>]*action="([^"]*)"', page.text)
    evil = f"https://localhost:{site.port + 1}"
    assert site.ask("POST", action, body=body, Origin=evil, **headers).status == 403
    ours = f"https://localhost:{site.port}"
    answer = site.ask("POST", action, body=body, Origin=ours, **headers)
    assert answer.status == 303, answer.text
    shown = site.ask("GET", answer.headers["Location"])
    assert shown.status == 200
    assert "Waiting its turn" in shown.text
    (picture,) = re.findall(r'id="original" src="([^"]*)"', shown.text)
    assert site.ask("GET", picture).headers["Content-Type"] == "image/jpeg"


@pytest.mark.parametrize("way", WAYS)
def test_the_addresses_of_a_job_lead_through_the_proxy(
    sites: dict[str, Site], way: str
) -> None:
    site = sites[way]
    made = site.ask("POST", f"/queue{JOBS}", body=whole(), Content_Type=MULTIPART)
    assert made.status == 201, made.text
    links = json.loads(made.text)["links"]
    assert made.headers["Location"] == links["self"]
    assert site.ask("GET", links["self"]).status == 200
    assert site.ask("GET", links["page"]).status == 200
    assert site.ask("POST", links["cancel"]).status == 202
    # Whoever is on this machine can follow them without nginx, too.
    if way == "public_url":
        assert sites["direct public_url"].ask("GET", links["self"]).status == 200


@pytest.mark.parametrize("way", WAYS)
def test_each_client_is_limited_for_itself_and_no_right_token_is(
    sites: dict[str, Site], way: str
) -> None:
    site = sites[way]

    def show(token: str, client: str, claim: str = "198.51.100.1") -> Answer:
        bearer = {"Authorization": f"Bearer {token}", "X_Forwarded_For": claim}
        return site.ask("POST", PAUSE, client=client, **bearer)

    # Each process of the server counts for itself.
    for number in range(100):
        refused = show("wrong", "127.0.0.2", claim=f"198.51.100.{number}")
        if refused.status == 429:
            break
    assert refused.status == 429
    assert "Too many wrong operator tokens from this address" in refused.text
    assert {show("wrong", "127.0.0.3").status for _ in range(10)} == {401}
    assert {show(TOKEN, "127.0.0.2").status for _ in range(10)} == {202}


def test_what_a_stranger_claims_is_ignored(sites: dict[str, Site]) -> None:
    claims = {
        "X_Forwarded_For": "198.51.100.7",
        "X_Forwarded_Proto": "https",
        # The server itself shall have no opinion of its own.
        "X_Forwarded_Ssl": "off",
        "X_Forwarded_Host": "localhost",
        "X_Forwarded_Prefix": "/evil",
    }
    site = sites["direct headers"]
    stranger = site.ask("GET", "/", client="127.0.0.9", **claims)
    assert "Secure" not in stranger.headers["Set-Cookie"]
    assert "/evil" not in stranger.text
    # The same from the proxy's address holds: so this is what the check was about.
    believed = site.ask("GET", "/", **claims)
    assert "Secure" in believed.headers["Set-Cookie"]
    assert "/evil/" in believed.text


@pytest.mark.parametrize("way", WAYS)
def test_a_browser_uses_the_pages_through_the_proxy(
    sites: dict[str, Site], way: str
) -> None:
    address = f"https://localhost:{sites[way].port}"
    with chromium() as browser:
        visit = Visit(browser, address, ignore_https_errors=True)
        page = visit.page
        choose_samples(page, "/queue/")
        page.get_by_role("button", name="Start painting").click()
        page.wait_for_url("**/queue/jobs/*")
        expect(page.locator("#headline")).to_have_text("Waiting its turn")
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#headline")).to_have_text("Cancelled")
        first, again = page.url, page.get_by_role("button", name="Retry")
        again.click()
        page.wait_for_url(lambda url: url != first)
        expect(page.locator("#headline")).to_have_text("Waiting its turn")
        page.get_by_role("link", name="Gallery").click()
        page.wait_for_url("**/queue/jobs")
        picture = page.locator(".tile img").first
        page.wait_for_function(
            "one => one.naturalWidth > 0", arg=picture.element_handle()
        )
        # Who comes back to a page and presses again wants another job.
        page.goto("/queue/")
        key = page.locator("#new-job [name=idempotency_key]")
        before = key.input_value()
        page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow'))")
        assert re.fullmatch("[0-9a-f]{32}", key.input_value())
        assert key.input_value() != before
        visit.context.close()
    assert visit.wrong == []
