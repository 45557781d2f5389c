"""What hostile clients send, and how tests send it."""

import re
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

from tests.shared.test_jpeg_scans import of_scans
from tests.web.conftest import CONTENT, JOBS, STYLE
from tests.web.test_uploads import part, whole

HOST = b"Host: 127.0.0.1\r\n"
CLOSE = b"Connection: close\r\n"
FORM = b"Content-Type: multipart/form-data; boundary=b\r\n"
SUBMIT = b"POST " + JOBS.encode() + b" HTTP/1.1\r\n" + HOST + FORM
NOWHERE = SUBMIT.replace(JOBS.encode(), b"/nowhere")
CHUNKED = b"Transfer-Encoding: chunked\r\n"
# Answered only by a server that takes the end of another request's body for a request.
SMUGGLED = b"GET /healthz HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n"
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
WHOLE = whole()


def get(target: bytes, *headers: bytes) -> bytes:
    """Return a request for this target."""
    more = b"".join(header + b"\r\n" for header in headers)
    return b"GET " + target + b" HTTP/1.1\r\n" + HOST + more + b"\r\n"


def last(target: bytes, *headers: bytes) -> bytes:
    """Return a request after which the connection ends."""
    return get(target, *headers, CLOSE.strip())


def with_length(head: bytes, body: bytes, length: int | None = None) -> bytes:
    """Return a request with a body, or with the beginning of a longer one."""
    count = len(body) if length is None else length
    return head + b"Content-Length: %d\r\n\r\n" % count + body


def form(*parts: bytes) -> bytes:
    """Return a submission of these parts."""
    return with_length(SUBMIT + CLOSE, b"".join(parts) + b"--b--\r\n")


def picture(name: bytes, data: bytes) -> bytes:
    """Return a part that is a picture."""
    return part(b'; name="%s"; filename="a"' % name, data)


def styles(count: int) -> bytes:
    """Return a submission of that many style pictures."""
    return form(picture(b"content", CONTENT), *(picture(b"style", STYLE),) * count)


def chunks(*lines: bytes) -> bytes:
    """Return lines of a chunked body."""
    return b"\r\n" + b"\r\n".join(lines)


COSTLY = form(picture(b"content", of_scans(3000)), picture(b"style", STYLE))
# Bodies whose end may be seen in two places, and a request in what follows the first.
MALFORMED_CHUNKS = {
    "prefix": chunks(b"0x4", b"abcd", b"0", b"", b""),
    "sign": chunks(b"+4", b"abcd", b"0", b"", b""),
    "underscore": chunks(b"0_4", b"abcd", b"0", b"", b""),
    "word": chunks(b"four", b"abcd", b"0", b"", b""),
    "negative": chunks(b"-4", b"abcd", b"0", b"", b""),
    "no end": chunks(b"4", b"abcdXY0", b"", b""),
}
MALFORMED = {
    f"{name}, {where}": head + CHUNKED + body + SMUGGLED
    for name, body in MALFORMED_CHUNKS.items()
    for where, head in (("read", SUBMIT), ("unread", NOWHERE))
}
LENGTH = b"Content-Length: 4\r\n"
NO_CHUNKS = b"\r\n0\r\n\r\n" + SMUGGLED
OLD = SUBMIT.replace(b"/1.1", b"/1.0")
TWO_FRAMINGS = {
    "length, chunks": SUBMIT + LENGTH + CHUNKED + NO_CHUNKS,
    "chunks, length": SUBMIT + CHUNKED + LENGTH + NO_CHUNKS,
    "two lengths": SUBMIT + LENGTH + b"Content-Length: 5\r\n\r\nabcd" + SMUGGLED,
    "a signed length": SUBMIT + b"Content-Length: +4\r\n\r\nabcd" + SMUGGLED,
    "unknown coding": SUBMIT + b"Transfer-Encoding: xchunked\r\n" + NO_CHUNKS,
    "space": SUBMIT + b"Transfer-Encoding : chunked\r\n" + NO_CHUNKS,
    "chunks in 1.0": OLD + CHUNKED + NO_CHUNKS,
}
# What is refused, each by one of these statuses.
REFUSED: dict[str, tuple[bytes, set[int]]] = {
    "many scans": (COSTLY, {422}),
    "no boundary": (
        with_length(SUBMIT.replace(b"; boundary=b", b"") + CLOSE, WHOLE),
        {422},
    ),
    "no end": (with_length(SUBMIT + CLOSE, WHOLE[:-20]), {422}),
    "10,000 parts": (form(part(b'; name="a"', b"") * 10_000), {413}),
    "long header": (last(b"/", b"A: " + b"a" * 9000), {400, 431}),
    "many headers": (last(b"/", *[b"A: b"] * 5000), {400, 431}),
    "long line": (last(b"/" + b"a" * 9000), {400, 414}),
    "endless line": (b"GET /" + b"a" * 100_000, {400, 414, 431}),
    "broken target": (last(b"http://[::1/healthz"), {400}),
    "another host's target": (last(b"http://evil/nowhere"), {400, 404}),
    "two hosts": (last(b"/", b"Host: evil"), {400}),
    "tunnel": (b"CONNECT 127.0.0.1:22 HTTP/1.1\r\n" + HOST + b"\r\n", {400, 404, 405}),
    "HTTP/0.9": (b"GET /nowhere\r\n\r\n", {400, 404}),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 405}),
    "garbage": (bytes(range(256)) * 50 + b"\r\n\r\n", {400}),
    "TLS": (b"\x16\x03\x01\x00\xdc\x01\x00" + b"\x03" * 200 + b"\r\n\r\n", {400}),
    "strange bytes": (last(b"/jobs/%ff%00?a=%fe", b"Cookie: \xff=;;\xfe"), {400, 404}),
}


def connected(port: int, source: str, receive_buffer: int = 0) -> socket.socket:
    """Connect from one of this machine's addresses."""
    one = socket.socket()
    if receive_buffer:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    one.settimeout(60)
    one.bind((source, 0))
    one.connect(("127.0.0.1", port))
    return one


def send_last(port: int, sent: bytes, source: str = "127.0.0.1") -> bytes:
    """Send this and nothing more; return what comes until the server has enough.

    Closing our half would mean to nginx that nobody waits for an answer any more.
    """
    received = b""
    with connected(port, source) as one, suppress(ConnectionError):
        # A refused client may find the connection ended while it still sends.
        with suppress(ConnectionError):
            one.sendall(sent)
        while more := one.recv(65536):
            received += more
    return received


def statuses(received: bytes) -> list[int]:
    """Return the status of each answer."""
    return [int(found) for found in STATUS.findall(received)]


class Crowd:
    """Clients that send something, and a byte every now and then, but never go on."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._members: list[tuple[socket.socket, bytes, bool]] = []
        self.received = b""

    def __enter__(self) -> "Crowd":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(
        self,
        count: int,
        ports: Sequence[int],
        opening: bytes,
        dripped: bytes = b"",
        reads: bool = True,
    ) -> None:
        """Have so many clients come, from one address, to each of the ports in turn."""
        for number in range(count):
            port = ports[number % len(ports)]
            one = connected(port, "127.0.0.66", 0 if reads else 4096)
            self._stack.enter_context(one)
            with suppress(ConnectionError):
                one.sendall(opening)
            one.setblocking(False)
            self._members.append((one, dripped, reads))

    def drip_while(self, condition: Callable[[], bool]) -> None:
        """Send bytes one by one, and read what came, as long as the condition holds."""
        position = 0
        while condition():
            for one, dripped, reads in self._members:
                with suppress(OSError):
                    if dripped:
                        at = position % len(dripped)
                        one.send(dripped[at : at + 1])
                with suppress(OSError):
                    if reads:
                        self.received += one.recv(65536)
            position += 1
            time.sleep(0.5)
