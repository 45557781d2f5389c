"""A client's connection: its state, its limits, and the answer on its way out."""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import Enum, auto
from selectors import BaseSelector
from socket import socket
from typing import Any

from stylequeue_web.incoming_request import IncomingRequest


@dataclass(frozen=True)
class Limits:
    """How long a client may take, and how much may be kept for all of them."""

    # From the first byte, or from connecting, to the end of the headers.
    head_seconds: float = 10
    # In each such time a body or an answer moves on by so many bytes, or ends.
    window_seconds: float = 15
    window_bytes: int = 150_000
    # For a whole body, and for a whole answer.
    total_seconds: float = 900
    # For a client to read a last answer before its connection is closed.
    linger_seconds: float = 5
    # Bodies that one process holds, in memory and in temporary files.
    held_bytes: int = 1_000_000_000
    # Where the application names no limit for a body.
    max_body_bytes: int = 10_000_000


class State(Enum):
    """What a connection waits for."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    # A thread runs the application.
    RUNNING = auto()
    SENDING = auto()
    CLOSING = auto()


class Output:
    """Stands in for the socket where gunicorn writes an answer; never blocks."""

    def __init__(self, sock: socket) -> None:
        self._sock = sock
        self._pending = memoryview(b"")
        self._written: list[bytes] = []
        self.is_broken = False
        # Bytes handed to the operating system since the current window began.
        self.moved = 0

    def sendall(self, data: bytes) -> None:
        """Keep the bytes for the next flush."""
        self._written.append(data)

    def gettimeout(self) -> float:
        """Return that of a socket that does not block."""
        return 0.0

    def flush(self) -> bool:
        """Send what the client takes now; return whether nothing is left."""
        if self._written:
            self._pending = memoryview(b"".join([self._pending, *self._written]))
            self._written.clear()
        while self._pending and not self.is_broken:
            try:
                count = self._sock.send(self._pending)
            except BlockingIOError:
                return False
            except OSError:
                self.is_broken = True
                break
            self.moved += count
            self._pending = self._pending[count:]
        return True


class Connection:
    """One client's connection, and where it stands."""

    def __init__(self, sock: socket, client: Any, server: Any) -> None:
        self.sock, self.client, self.server = sock, client, server
        self.output = Output(sock)
        self.state = State.HEAD
        # The events that the loop waits for, as a mask of `selectors`.
        self.watched = 0
        self.deadline = 0.0

    def expect(self, incoming: IncomingRequest) -> None:
        """Forget the last request, and wait for this one."""
        self.incoming = incoming
        # Why the request cannot be handed to the application.
        self.error: Exception | None = None
        # Runs the application and then takes its answer piece by piece.
        self.answer: Generator[None, None, None] | None = None
        # gunicorn's response.
        self.response: Any = None
        self.keeps_alive = False
        # What followed the request on the connection: the beginning of the next one.
        self.rest = b""
        # Bytes read since the current window began.
        self.moved = 0
        # When the body, or the answer, must have ended; None before it began.
        self.last_deadline: float | None = None

    def watch(
        self, poller: BaseSelector, events: int, call: Callable[[Any], None]
    ) -> None:
        """Have the loop call when one of these events comes; 0 for none."""
        if events == self.watched:
            return
        if not events:
            poller.unregister(self.sock)
        elif self.watched:
            poller.modify(self.sock, events, call)
        else:
            poller.register(self.sock, events, call)
        self.watched = events

    def begin_windows(self, limits: Limits) -> None:
        """Count from now on what a body or an answer moves."""
        now = time.monotonic()
        self.last_deadline = now + limits.total_seconds
        self._begin_window(now, limits)

    def moves_on(self, limits: Limits) -> bool:
        """Return whether enough moved in the window that ends; begin another if so."""
        now = time.monotonic()
        moved = self.moved if self.state is State.BODY else self.output.moved
        if self.last_deadline is None or now >= self.last_deadline:
            return False
        if moved < limits.window_bytes:
            return False
        self._begin_window(now, limits)
        return True

    def _begin_window(self, now: float, limits: Limits) -> None:
        self.moved = self.output.moved = 0
        self.deadline = now + limits.window_seconds
