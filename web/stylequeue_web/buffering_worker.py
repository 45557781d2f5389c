"""gunicorn's threaded worker, for slow clients: no thread ever waits for a client.

The event loop reads each request whole before a thread runs the application, and
sends what the client does not take at once. What a client may take its time for is
bounded; see connection.Limits.
"""

import errno
import struct
import time
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE
from socket import SHUT_WR, SO_LINGER, SOL_SOCKET
from typing import Any, ClassVar

from gunicorn.http.errors import (  # type: ignore[import-untyped]
    ParseException,
)

from stylequeue_web.answering_worker import AnsweringWorker
from stylequeue_web.connection import Connection, Limits, State
from stylequeue_web.incoming_request import BodyBudget, IncomingRequest

RECEIVE_BYTES = 64 * 1024
ACCEPTED_AT_ONCE = 16
SWEEP_SECONDS = 0.5
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)
NOBODY_THERE = (errno.EAGAIN, errno.ECONNABORTED)
TIMED_OUT = (
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)
# Close at once: on, for 0 seconds.
RESET = struct.pack("ii", 1, 0)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class BufferingWorker(AnsweringWorker):
    """Reads requests and sends answers in the event loop, within limits."""

    limits: ClassVar[Limits] = Limits()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._connections: set[Connection] = set()
        self._next_sweep = 0.0
        self._budget = BodyBudget(self.limits.held_bytes)

    def load_wsgi(self) -> None:
        """Load the application, and learn how long a body it takes."""
        super().load_wsgi()
        found = self.wsgi.config["MAX_CONTENT_LENGTH"]
        self.max_body_bytes = found or self.limits.max_body_bytes
        # The largest body finds room, even beside another one.
        self._budget.limit = max(self._budget.limit, 2 * self.max_body_bytes)

    def accept(self, listener: Any) -> None:
        """Accept those who wait, as far as there is room."""
        for _ in range(ACCEPTED_AT_ONCE):
            if self.nr_conns >= self.worker_connections:
                return
            try:
                sock, client = listener.accept()
            except OSError as error:
                if error.errno in OUT_OF_FILES:
                    self.log.warning("No more files can be opened; clients wait.")
                    time.sleep(0.05)
                elif error.errno not in NOBODY_THERE:
                    raise
                return
            sock.setblocking(False)
            self.nr_conns += 1
            conn = Connection(sock, client, listener.getsockname())
            self._connections.add(conn)
            self._expect_request(conn, State.HEAD, self.limits.head_seconds)

    def murder_keepalived(self, force: bool = False) -> None:
        """Close all connections, if told to; see murder_pending for single ones."""
        if force:
            for conn in list(self._connections):
                self._close(conn)

    def murder_pending(self) -> None:
        """End the connections of clients that took too long."""
        now = time.monotonic()
        if now < self._next_sweep:
            return
        self._next_sweep = now + SWEEP_SECONDS
        for conn in list(self._connections):
            if conn.state is not State.RUNNING and now >= conn.deadline:
                self._end_of_deadline(conn)

    def finish_request(self, conn: Connection, future: "Future[bool]") -> None:
        """Go on when a thread has done what it could."""
        if conn not in self._connections:
            # It was closed because the worker stops.
            return
        if future.cancelled() or future.exception() is not None:
            self._close(conn)
        elif not future.result():
            if conn.last_deadline is None:
                conn.begin_windows(self.limits)
            conn.state = State.SENDING
            self._watch(conn, EVENT_WRITE)
        else:
            self._end_of_answer(conn)

    def _cap_keepalive(self, deadline: float) -> None:
        """Let idle connections end by then, since the worker stops."""
        for conn in self._connections:
            if conn.state in (State.IDLE, State.CLOSING):
                conn.deadline = min(conn.deadline, deadline)

    def _on_event(self, conn: Connection, _: Any) -> None:
        if conn not in self._connections:
            # It was closed by an event before this one.
            return
        if conn.state is State.RUNNING:
            # More came, or the client left: looked at after the answer.
            self._watch(conn, 0)
        elif conn.state is State.SENDING:
            self._send(conn)
        else:
            self._receive(conn)

    def _watch(self, conn: Connection, events: int) -> None:
        conn.watch(self.poller, events, partial(self._on_event, conn))

    def _expect_request(self, conn: Connection, state: State, seconds: float) -> None:
        conn.expect(
            IncomingRequest(*(self.cfg, conn.client, self.max_body_bytes, self._budget))
        )
        conn.state = state
        conn.deadline = time.monotonic() + seconds
        self._watch(conn, EVENT_READ)

    def _receive(self, conn: Connection) -> None:
        try:
            data = conn.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(conn)
        elif conn.state is not State.CLOSING:
            self._received(conn, data)

    def _received(self, conn: Connection, data: bytes) -> None:
        conn.moved += len(data)
        if conn.state is State.IDLE:
            conn.state = State.HEAD
            conn.deadline = time.monotonic() + self.limits.head_seconds
        try:
            conn.rest = conn.incoming.feed(data)
        except (ParseException, StopIteration, OSError) as error:
            conn.error = error
        if conn.error is not None or conn.incoming.is_whole:
            conn.state = State.RUNNING
            conn.last_deadline = None
            self.enqueue_req(conn)
        elif conn.state is State.HEAD and conn.incoming.request is not None:
            self._expect_body(conn)

    def _expect_body(self, conn: Connection) -> None:
        conn.state = State.BODY
        conn.begin_windows(self.limits)
        if conn.incoming.request._expected_100_continue:
            conn.output.sendall(CONTINUE)
            conn.output.flush()

    def _end_of_deadline(self, conn: Connection) -> None:
        """End the connection, unless its body or answer moves on."""
        if conn.moves_on(self.limits):
            return
        # A browser may have connected without asking anything.
        if conn.state is State.BODY or (conn.state is State.HEAD and conn.moved):
            conn.output.sendall(TIMED_OUT)
            conn.output.flush()
        self._close(conn)

    def _send(self, conn: Connection) -> None:
        if not conn.output.flush():
            return
        conn.state = State.RUNNING
        self._watch(conn, 0)
        self.enqueue_req(conn)

    def _end_of_answer(self, conn: Connection) -> None:
        unread = conn.incoming.is_unread
        conn.incoming.close()
        if conn.output.is_broken:
            self._close(conn)
        elif unread or not (conn.keeps_alive and self.alive):
            self._linger(conn)
        else:
            rest = conn.rest
            self._expect_request(conn, State.IDLE, self.cfg.keepalive)
            if rest:
                self._received(conn, rest)

    def _linger(self, conn: Connection) -> None:
        """Say that no more comes, and let the client read before the connection ends.

        Closing at once would reset it while bytes of the client are unread.
        """
        conn.state = State.CLOSING
        conn.last_deadline = None
        conn.deadline = time.monotonic() + self.limits.linger_seconds
        try:
            conn.sock.shutdown(SHUT_WR)
        except OSError:
            self._close(conn)
        else:
            self._watch(conn, EVENT_READ)

    def _close(self, conn: Connection) -> None:
        self._watch(conn, 0)
        self._connections.discard(conn)
        self.nr_conns -= 1
        if conn.state is State.SENDING:
            # The system would keep what the client does not read.
            with suppress(OSError):
                conn.sock.setsockopt(SOL_SOCKET, SO_LINGER, RESET)
        conn.sock.close()
        conn.incoming.close()
        if conn.state is State.SENDING and conn.answer is not None:
            # It may close files far away, which takes time.
            self.tpool.submit(conn.answer.close)
