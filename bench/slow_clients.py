"""Measure how long polls wait while slow, stalled or costly clients attack.

    python -m bench.slow_clients [--attacks half_sent,unread] [--seconds 15]

A real web server on SQLite; one attack after the other, each against a server of its
own. Meanwhile /healthz is asked every 0.25 seconds on a fresh connection, and clients
that keep their connections poll a job with its ETag. The table says how long these
waited (milliseconds), how many got no answer within 10 seconds, when the server had cut
off the slow clients (seconds), and how much lay in temporary files at most. The
clients share the cores with the server. `--server FILE` runs another server's script,
which reads STYLEQUEUE_PORT and the other settings from its environment.
"""

import argparse
import http.client
import io
import math
import multiprocessing
import os
import random
import selectors
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from bench import machine
from bench.seaweedfs import free_ports
from bench.services import spawn
from bench.status import finished_job
from stylequeue_shared import reading
from stylequeue_shared.jpeg_scans import MAX_SCANS
from stylequeue_shared.settings import Settings
from stylequeue_web.services import open_services
from stylequeue_worker.main import environment

POLLERS = 4
TIMEOUT = 10.0
BOUNDARY = "slow"
PART = (
    f"--{BOUNDARY}\r\n"
    'Content-Disposition: form-data; name="{name}"; filename="a.jpg"\r\n'
    "Content-Type: image/jpeg\r\n\r\n"
)
# More than the sockets' buffers hold, so that a client who does not read stops it.
RESULT_BYTES = 12_000_000
COSTLY_BYTES = 1_000_000


@dataclass(frozen=True)
class Attack:
    """How one kind of slow client behaves, and how many of them come."""

    count: int
    # The bytes that each client sends at once, given the path of the polled job.
    opening: Callable[[str], bytes]
    # The bytes that it repeats, one a second; it sends no more if they are empty.
    dripped: bytes = b""
    reads: bool = True
    costly: int = 0


@dataclass
class Seen:
    """The answers and waiting times of all clients during one attack."""

    waits: list[float] = field(default_factory=list)
    failed: int = 0


def _request(line: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"{line} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def _upload(length: int, sent: bytes, path: str = "/api/v1/jobs") -> bytes:
    kind = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"
    return _request(f"POST {path}", kind, f"Content-Length: {length}", body=sent)


def _half_sent(_: str) -> bytes:
    return _upload(2_000_000, PART.format(name="content").encode() + b"x" * 1_000_000)


ATTACKS = {
    "none": Attack(0, lambda job: b""),
    "slow_headers": Attack(200, lambda job: b"GET / HTTP/1.1\r\n", b"X-Some: a\r\n"),
    "half_sent": Attack(200, _half_sent),
    "dripping_body": Attack(200, _half_sent, b"x"),
    "unread": Attack(100, lambda job: _request(f"GET {job}/result"), reads=False),
    "idle": Attack(500, lambda job: _request("GET /healthz")),
    "unsent_404": Attack(200, lambda job: _upload(1_000_000, b"x", "/nowhere")),
    "unsent_413": Attack(200, lambda job: _upload(10**10, b"x" * 100_000)),
    "half_sent_and_costly": Attack(200, _half_sent, costly=40),
}


def main() -> None:
    """Run the attacks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--server", type=Path, help="a script of another server")
    options = parser.parse_args()
    found = machine.describe()
    rows = []
    for name in options.attacks.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(_row(name, Path(folder), options))
            print(machine.table(rows[-1:]), flush=True)
    machine.report("slow_clients", rows, found)


def _row(name: str, folder: Path, options: argparse.Namespace) -> dict[str, object]:
    settings = Settings(home=folder / "home", port=free_ports(1)[0])
    job = f"/api/v1/jobs/{finished_job_with_result(settings)}"
    with _server(settings, folder / "log", options.server) as process:
        return {
            "attack": name,
            **attack(ATTACKS[name], process, settings.port, job, options.seconds),
        }


def attack(
    how: Attack,
    process: "subprocess.Popen[bytes]",
    port: int,
    job: str,
    seconds: float,
) -> dict[str, object]:
    """Attack the server for so long, and return what the other clients saw."""
    health, polls = Seen(), Seen()
    slow = SlowClients(how, port, job)
    costly = multiprocessing.get_context("fork").Process(
        target=_upload_costly, args=(port, _costly_pictures(how.costly))
    )
    until = time.monotonic() + seconds
    with ThreadPoolExecutor(POLLERS + 2) as pool:
        costly.start()
        running = [pool.submit(_ask_health, port, until, health)]
        running += [pool.submit(_poll, port, job, until, polls) for _ in range(POLLERS)]
        slow.connect()
        largest = 0
        while time.monotonic() < until:
            slow.turn(0.25)
            largest = max(largest, temporary_bytes(process.pid))
        for one in running:
            one.result()
    costly.terminate()
    costly.join()
    slow.close()
    return {
        "slow clients": how.count,
        **_figures("healthz", health),
        **_figures("poll", polls),
        "cut off": len(slow.ended),
        "after s, median": statistics.median(slow.ended) if slow.ended else None,
        "after s, last": max(slow.ended, default=None),
        "temporary MB": largest / 1e6,
    }


class SlowClients:
    """Connections that send or read too slowly, and when the server ended each."""

    def __init__(self, how: Attack, port: int, job: str) -> None:
        self._how, self._port, self._job = how, port, job
        self._selector = selectors.DefaultSelector()
        self._sockets: list[socket.socket] = []
        self._began = self._dripped = time.monotonic()
        self._position = 0
        self.ended: list[float] = []

    def connect(self) -> None:
        """Open all connections and send what each sends at once."""
        opening = self._how.opening(self._job)
        self._began = time.monotonic()
        for _ in range(self._how.count):
            one = socket.socket()
            if not self._how.reads:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.settimeout(0.5)
            with suppress(OSError):
                one.connect(("127.0.0.1", self._port))
                one.sendall(opening)
            one.setblocking(False)
            self._sockets.append(one)
            events = selectors.EVENT_READ if self._how.reads else 0
            if events:
                self._selector.register(one, events)

    def turn(self, seconds: float) -> None:
        """Read what came, drip what is due, and note who was cut off."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                self._read(key.fileobj)
        self._note_resets()
        if self._how.dripped and time.monotonic() - self._dripped >= 1:
            self._drip()

    def close(self) -> None:
        """Close all connections that are still open."""
        for one in self._sockets:
            one.close()
        self._selector.close()

    def _read(self, one: Any) -> None:
        try:
            if one.recv(65536):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._end(one)

    def _note_resets(self) -> None:
        """Find those that the server closed, without reading their answers."""
        for one in self._sockets:
            # 8 is CLOSE_WAIT, 7 CLOSE: the server's end is closed.
            if one.fileno() >= 0 and _tcp_state(one) in (7, 8):
                self._end(one)

    def _drip(self) -> None:
        self._dripped = time.monotonic()
        at = self._position % len(self._how.dripped)
        self._position += 1
        for one in self._sockets:
            if one.fileno() >= 0:
                with suppress(OSError):
                    one.send(self._how.dripped[at : at + 1])

    def _end(self, one: socket.socket) -> None:
        self.ended.append(time.monotonic() - self._began)
        with suppress(KeyError):
            self._selector.unregister(one)
        one.close()


def _tcp_state(one: socket.socket) -> int:
    found: int = struct.unpack("B", one.getsockopt(socket.SOL_TCP, 11, 1))[0]
    return found


def _ask_health(port: int, until: float, seen: Seen) -> None:
    while time.monotonic() < until:
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        _ask(connection, "/healthz", {}, seen)
        connection.close()
        time.sleep(max(0.0, 0.25 - (time.monotonic() - began)))


def _poll(port: int, job: str, until: float, seen: Seen) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    etag: str | None = None
    while time.monotonic() < until:
        headers = {} if etag is None else {"If-None-Match": etag}
        etag = _ask(connection, job, headers, seen) or etag
        time.sleep(0.05)
    connection.close()


def _ask(
    connection: http.client.HTTPConnection,
    path: str,
    headers: dict[str, str],
    seen: Seen,
) -> str | None:
    began = time.monotonic()
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        connection.close()
        seen.failed += 1
        return None
    seen.waits.append(time.monotonic() - began)
    if answer.status not in (200, 304):
        seen.failed += 1
    return answer.headers["ETag"]


def _figures(name: str, seen: Seen) -> dict[str, object]:
    waits = sorted(1000 * wait for wait in seen.waits) or [math.nan]
    return {
        f"{name} p50": waits[len(waits) // 2],
        f"{name} p99": waits[int(0.99 * (len(waits) - 1))],
        f"{name} max": waits[-1],
        f"{name} failed": seen.failed,
    }


def _upload_costly(port: int, contents: Sequence[bytes]) -> None:
    """Upload these pictures at once, each on a thread of its own."""
    style = _picture(64, 64)
    with ThreadPoolExecutor(max(len(contents), 1)) as pool:
        for content in contents:
            pool.submit(_upload_one, port, content, style)


def _upload_one(port: int, content: bytes, style: bytes) -> None:
    parts = [
        PART.format(name=name).encode() + data + b"\r\n"
        for name, data in (("content", content), ("style", style))
    ]
    body = b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()
    with socket.create_connection(("127.0.0.1", port)) as one, suppress(OSError):
        one.sendall(_upload(len(body), body))
        one.recv(65536)


def _picture(width: int, height: int) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(written, "JPEG", progressive=True)
    return written.getvalue()


def _costly_pictures(count: int) -> list[bytes]:
    """Return JPEGs of the usual limit, 50 megapixels, whose last scan is repeated.

    Half of them have as many scans as are allowed, the others thousands.
    """
    picture = _picture(8160, 6120)
    begin, end = picture.rindex(b"\xff\xda"), picture.rindex(b"\xff\xd9")
    scan = picture[begin:end]
    scans = MAX_SCANS - picture.count(b"\xff\xda"), COSTLY_BYTES // len(scan)
    return [
        # A number behind its end makes each a picture of its own.
        picture[:end] + scan * scans[number % 2] + picture[end:] + b"%d" % number
        for number in range(count)
    ]


def finished_job_with_result(settings: Settings) -> str:
    """Record a finished job whose result is a large file; return its id."""
    job_id = finished_job(settings)
    services = open_services(settings)
    key = reading.result_key(services.database, job_id)
    services.store.put(key, random.Random(0).randbytes(RESULT_BYTES))
    services.database.close()
    return job_id


@contextmanager
def _server(
    settings: Settings, log: Path, script: Path | None
) -> "Iterator[subprocess.Popen[bytes]]":
    if script is None:
        process = spawn("web", settings, log)
    else:
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, script],
                env=os.environ | environment(settings),
                stdout=file,
                stderr=file,
            )
    try:
        deadline = time.monotonic() + 30
        while not _is_up(settings.port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server does not start:\n{log.read_text()}")
            time.sleep(0.1)
        yield process
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(15)
    process.kill()
    for child in family:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()


def _is_up(port: int) -> bool:
    seen = Seen()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    _ask(connection, "/healthz", {}, seen)
    connection.close()
    return not seen.failed


def temporary_bytes(server: int) -> int:
    """Return how large the deleted files are that the server's processes hold."""
    found = 0
    for one in _family(server):
        with suppress(OSError):
            for descriptor in Path(f"/proc/{one.pid}/fd").iterdir():
                with suppress(OSError):
                    if descriptor.stat().st_nlink == 0 and descriptor.is_file():
                        found += descriptor.stat().st_size
    return found


def _family(server: int) -> Sequence[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(server)
        return [first, *first.children(recursive=True)]
    return []


if __name__ == "__main__":
    main()
