"""Slow and stalled clients against a real server with short limits."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.web.test_server import free_port, status, wait_for

CODE = """
import sys, types
from flask import Flask, request
from stylequeue_web import problems

app_module = types.ModuleType("stylequeue_web.app")

def pieces(count):
    for _ in range(count):
        yield b"x" * 100_000

def broken():
    yield b"x" * 9
    raise ValueError("in the middle")

def create_app(settings):
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = 3_000_000
    problems.register(app)
    app.add_url_rule("/", "index", lambda: "here")
    app.add_url_rule("/large", "large", lambda: pieces(200))
    app.add_url_rule("/broken", "broken", broken)
    app.add_url_rule(
        "/api/length", "length", lambda: str(len(request.get_data())), methods=["POST"]
    )
    return app

app_module.create_app = create_app
sys.modules["stylequeue_web.app"] = app_module
from stylequeue_shared.settings import load_settings
from stylequeue_web.connection import Limits
from stylequeue_web.server import serve
limits = Limits(
    head_seconds=2, window_seconds=2, window_bytes=50_000, held_bytes=5_000_000
)
sys.exit(serve(load_settings(), limits))
"""
# More than there are threads in all processes.
MANY = 80


@contextmanager
def serving(folder: Path) -> "Iterator[tuple[subprocess.Popen[bytes], int]]":
    port = free_port()
    environment = os.environ | {
        "STYLEQUEUE_HOME": str(folder),
        "STYLEQUEUE_PORT": str(port),
    }
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", CODE], env=environment, stdout=log, stderr=log
        )
    try:
        wait_for(lambda: status("127.0.0.1", port) == 200 or server.poll() is not None)
        yield server, port
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with serving(tmp_path_factory.mktemp("server")) as (_, port):
        yield port


def upload(length: int, path: str = "/api/length") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
    return head.encode()


def connected(port: int, receive_buffer: int | None = None) -> socket.socket:
    one = socket.socket()
    if receive_buffer is not None:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    one.settimeout(30)
    one.connect(("127.0.0.1", port))
    return one


def everything(one: socket.socket) -> bytes:
    received = []
    with suppress(ConnectionResetError):
        while more := one.recv(65536):
            received.append(more)
    return b"".join(received)


def read_slowly(one: socket.socket) -> None:
    deadline = time.monotonic() + 30
    while one.recv(100):
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.2)


def last_answer(port: int, *sent: bytes) -> bytes:
    with connected(port) as one:
        for data in sent:
            one.sendall(data)
        one.shutdown(socket.SHUT_WR)
        return everything(one)


@pytest.mark.parametrize(
    "opening",
    [
        b"GET / HTTP/1.1\r\nHost:",
        upload(2_000_000) + b"x" * 10_000,
        upload(2_000_000, "/nowhere"),
        upload(10**9) + b"x" * 10_000,
        b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=["head", "body", "body after 404", "body after 413", "answer"],
)
def test_those_who_wait_for_nothing_hold_no_thread(port: int, opening: bytes) -> None:
    with ExitStack() as stack:
        for _ in range(MANY):
            stack.enter_context(connected(port, 4096)).sendall(opening)
        assert status("127.0.0.1", port) == 200


@pytest.mark.parametrize(
    ("opening", "dripped"),
    [(b"GET / HTTP/1.1\r\n", b"A: b\r\n"), (upload(2_000_000), b"x")],
    ids=["head", "body"],
)
def test_what_drips_in_is_cut_off(port: int, opening: bytes, dripped: bytes) -> None:
    with connected(port) as one:
        one.sendall(opening)
        one.settimeout(0.2)
        received, deadline = b"", time.monotonic() + 30
        while not received:
            assert time.monotonic() < deadline, "it goes on"
            try:
                received = one.recv(1000)
            except TimeoutError:
                one.sendall(dripped)
        assert received.startswith(b"HTTP/1.1 408 ")
        one.settimeout(30)
        assert everything(one) == b""


def test_an_answer_that_is_hardly_read_is_cut_off(port: int) -> None:
    with connected(port, 4096) as one:
        one.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            read_slowly(one)


def test_a_slow_upload_that_goes_on_is_taken(port: int) -> None:
    with connected(port) as one:
        one.sendall(upload(400_000))
        for _ in range(10):
            time.sleep(0.3)
            one.sendall(b"x" * 40_000)
        assert one.recv(1000).endswith(b"400000")


def test_a_large_answer_arrives_whole(port: int) -> None:
    found = last_answer(port, b"GET /large HTTP/1.0\r\n\r\n")
    assert found.partition(b"\r\n\r\n")[2] == b"x" * 20_000_000


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"])
def test_an_oversized_body_is_refused_before_it_is_sent(
    port: int, expect: bytes
) -> None:
    with connected(port) as one:
        one.sendall(upload(10**9).replace(b"\r\n\r\n", b"\r\n" + expect + b"\r\n"))
        received = everything(one)
    assert received.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in received


def test_a_refused_client_that_still_sends_is_not_reset(port: int) -> None:
    with connected(port) as one:
        one.sendall(upload(10**9))
        assert everything(one).startswith(b"HTTP/1.1 413 ")
        for _ in range(3):
            one.sendall(b"x" * 10_000)
            time.sleep(0.1)


def test_an_oversized_body_in_chunks_is_refused(port: int) -> None:
    head = b"POST /api/length HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"186a0\r\n" + b"x" * 100_000 + b"\r\n"
    assert last_answer(port, head, chunk * 31).startswith(b"HTTP/1.1 413 ")
    assert last_answer(port, head, chunk * 29, b"0\r\n\r\n").endswith(b"2900000")


def test_a_client_that_asks_first_is_told_to_send(port: int) -> None:
    with connected(port) as one:
        head = upload(5).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
        one.sendall(head)
        assert one.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        one.sendall(b"abcde")
        assert one.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_bodies_beyond_what_may_be_held_are_told_to_come_later(port: int) -> None:
    with ExitStack() as stack:
        waiting = [stack.enter_context(connected(port)) for _ in range(10)]
        for one in waiting:
            one.sendall(upload(2_900_000) + b"x" * 2_800_000)
        answers = [everything(one) for one in waiting]
    refused = [one for one in answers if one.startswith(b"HTTP/1.1 503 ")]
    # Each process holds one of them; which ones those are is chance.
    assert refused
    head, _, body = refused[0].partition(b"\r\n\r\n")
    assert b"\r\nRetry-After: " in head
    assert json.loads(body)["code"] == "machine"
    assert last_answer(port, upload(2_900_000) + b"x" * 2_900_000).endswith(b"2900000")


def test_requests_sent_at_once_are_answered_in_turn(port: int) -> None:
    sent = upload(3) + b"abc" + upload(4) + b"abcd" + b"GET / HTTP/1.0\r\n\r\n"
    found = last_answer(port, sent)
    assert found.count(b"HTTP/1.") == 3
    assert found.index(b"\r\n\r\n3") < found.index(b"\r\n\r\n4") < found.index(b"here")


def test_an_answer_that_fails_half_way_ends_the_connection(port: int) -> None:
    with connected(port) as one:
        one.sendall(b"GET /broken HTTP/1.1\r\nHost: a\r\n\r\n")
        received = everything(one)
    assert received.startswith(b"HTTP/1.1 200 ")
    # Neither an end nor a second answer follows.
    assert received.endswith(b"\r\n\r\n9\r\n" + b"x" * 9 + b"\r\n")


@pytest.mark.parametrize(
    "sent", [b"\r\n\r\n", b"nonsense\r\n\r\n", b"\x16\x03\x01" * 30_000]
)
def test_nonsense_ends_only_its_connection(port: int, sent: bytes) -> None:
    last_answer(port, sent)
    assert status("127.0.0.1", port) == 200


def test_a_half_sent_body_does_not_keep_the_server_from_stopping(
    tmp_path: Path,
) -> None:
    with serving(tmp_path) as (server, port), connected(port) as one:
        one.sendall(upload(2_000_000) + b"x")
        time.sleep(0.3)
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=30) == 0
