import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from stylequeue_shared.settings import load_settings
from stylequeue_web.connection import Limits
from stylequeue_web.server import bind_address, gunicorn_settings

# A small application in the place of ours: what is tested is the server.
CODE = """
import os, sys, time, types
from flask import Flask

app_module = types.ModuleType("stylequeue_web.app")
parent = os.getpid()

def create_app(settings):
    assert os.getpid() != parent, "made before the fork"
    app = Flask(__name__)

    @app.get("/")
    def index():
        return "here"

    @app.get("/slow")
    def slow():
        time.sleep(1.5)
        return "done"

    if os.environ.get("BREAK"):
        from stylequeue_shared.errors import BadConfiguration
        raise BadConfiguration("STYLEQUEUE_STORE: no")
    return app

app_module.create_app = create_app
sys.modules["stylequeue_web.app"] = app_module
from stylequeue_shared.settings import load_settings
from stylequeue_web.connection import Limits
from stylequeue_web.server import serve
sys.exit(serve(load_settings()))
"""


def free_port(host: str = "127.0.0.1") -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])


@contextmanager
def serving(
    tmp_path: Path, host: str = "127.0.0.1"
) -> "Iterator[tuple[subprocess.Popen[bytes], int]]":
    port = free_port(host)
    environment = os.environ | {
        "STYLEQUEUE_HOME": str(tmp_path),
        "STYLEQUEUE_HOST": host,
        "STYLEQUEUE_PORT": str(port),
        "HOME": str(tmp_path),
        # gunicorn would read these two; we do not want it to.
        "WEB_CONCURRENCY": "7",
        "GUNICORN_CMD_ARGS": "--bind 127.0.0.1:1",
    }
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", CODE], env=environment, stdout=log, stderr=log
        )
    try:
        wait_for(lambda: status(host, port) == 200 or server.poll() is not None)
        yield server, port
    finally:
        server.kill()
        server.wait()


def wait_for(condition: object, seconds: float = 60) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def status(host: str, port: int, path: str = "/") -> int | None:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()


def test_it_serves_from_processes_made_before_the_application(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, port):
        # create_app itself asserts that it runs after the fork.
        assert status("127.0.0.1", port) == 200
        # The second is forked a moment after the first answers.
        deadline = time.monotonic() + 20
        while len(children := psutil.Process(server.pid).children()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert len(children) <= 4


def test_sigterm_lets_a_request_end_and_leaves_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, port):
        children = psutil.Process(server.pid).children()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/slow")
        time.sleep(0.5)
        server.send_signal(signal.SIGTERM)
        assert connection.getresponse().read() == b"done"
        connection.close()
        assert server.wait(timeout=20) == 0
        assert not [child for child in children if child.is_running()]


def test_it_puts_no_file_into_the_users_home(tmp_path: Path) -> None:
    with serving(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {"log"}


@pytest.mark.parametrize(
    ("request_line", "header"),
    [("GET /" + "a" * 5000, "A: b"), ("GET /", "A: " + "b" * 9000)],
    ids=["line", "header"],
)
def test_an_overlong_request_is_refused(
    tmp_path: Path, request_line: str, header: str
) -> None:
    with serving(tmp_path) as (_, port):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            text = f"{request_line} HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\n\r\n"
            connection.sendall(text.encode())
            with connection.makefile("rb") as answer:
                assert answer.readline().split()[1].startswith(b"4")
        assert status("127.0.0.1", port) == 200


def test_it_listens_on_ipv6(tmp_path: Path) -> None:
    try:
        free_port("::1")
    except OSError:
        # A machine without IPv6 can still write its addresses down.
        assert bind_address("::1", 80) == "[::1]:80"
        return
    with serving(tmp_path, "::1") as (_, port):
        assert status("::1", port) == 200


def test_a_bad_setting_that_shows_late_is_said_and_ends_with_status_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BREAK", "1")
    with serving(tmp_path) as (server, _):
        assert server.wait(timeout=60) == 2
    log = (tmp_path / "log").read_text()
    assert "STYLEQUEUE_STORE: no\n" in log
    assert "Traceback" not in log


def test_it_never_waits_longer_for_requests_than_the_launcher_for_it() -> None:
    from stylequeue_shared.launcher import GRACE_SECONDS

    chosen = gunicorn_settings(load_settings({}), Limits())
    assert chosen["graceful_timeout"] < GRACE_SECONDS
    assert chosen["control_socket_disable"]
