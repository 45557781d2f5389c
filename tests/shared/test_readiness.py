import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from stylequeue_shared import readiness
from stylequeue_shared.errors import MachineError
from stylequeue_shared.readiness import Readiness, address
from stylequeue_shared.settings import Settings, load_settings

ANSWERS = {"/healthz": 200, "/readyz": 200}


class Canned(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(ANSWERS[self.path])
        self.end_headers()

    def log_message(self, format: str, *values: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[Settings]:
    with HTTPServer(("127.0.0.1", 0), Canned) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield settings(port=str(server.server_port))
        server.shutdown()
        thread.join()


def settings(**changes: str) -> Settings:
    return load_settings({f"STYLEQUEUE_{k.upper()}": v for k, v in changes.items()})


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ANSWERS:
        monkeypatch.setitem(ANSWERS, path, 200)


def test_a_web_server_that_is_ready_is_announced_with_its_address(
    web: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    ready = Readiness(web)
    ready.check()
    assert ready.announced
    said = capsys.readouterr().out
    assert f"StyleQueue is ready: http://127.0.0.1:{web.port}\n" in said
    assert str(web.home) in said


def test_one_that_lives_but_is_not_ready_is_announced_later_and_differently(
    web: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ANSWERS, "/readyz", 503)
    monkeypatch.setattr(readiness, "READY_SECONDS", 0.2)
    ready = Readiness(web)
    ready.check()
    assert not ready.announced
    time.sleep(0.3)
    ready.check()
    assert ready.announced
    assert "/readyz says that something is missing" in capsys.readouterr().out


def test_one_that_expects_another_host_name_counts_as_alive(
    web: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ANSWERS:
        monkeypatch.setitem(ANSWERS, path, 400)
    ready = Readiness(web)
    ready.check()
    assert ready.announced


def test_one_that_never_answers_is_given_up(
    web: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ANSWERS, "/healthz", 500)
    monkeypatch.setattr(readiness, "START_SECONDS", 0.0)
    ready = Readiness(web)
    time.sleep(0.01)
    with pytest.raises(MachineError, match="the web part does not answer"):
        ready.check()


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("::1", "http://[::1]:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
    ],
)
def test_the_address_shown_is_one_that_a_browser_can_open(
    host: str, shown: str
) -> None:
    chosen = settings(host=host, port="80", open="1", secret_key="k" * 32)
    assert address(chosen) == shown
