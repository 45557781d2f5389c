"""A line to a server that tests may cut, or have go silent."""

import socket
import threading
from contextlib import suppress
from types import TracebackType
from urllib.parse import unquote, urlsplit

from sqlalchemy.engine import make_url

from stylequeue_shared.settings import Settings

CHUNK = 65_536


class Line:
    """A TCP port of this machine that leads to a server: a port, or a socket's path."""

    def __init__(self, target: int | str) -> None:
        self._target = target
        self._pairs: list[Pair] = []
        self._lock = threading.Lock()
        self._cut = self._silent = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Line":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cut()
        # Else the thread that waits in accept() would keep it open.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def cut(self) -> None:
        """Close all connections, and each new one at once."""
        with self._lock:
            self._cut = True
            for pair in self._pairs:
                pair.close()
            self._pairs.clear()

    def strand(self) -> None:
        """Leave all connections open, and let nothing through them ever again.

        So it is when a machine vanishes, or what lies between forgets a connection.
        New ones are as good as ever.
        """
        with self._lock:
            for pair in self._pairs:
                pair.silent = True

    def silence(self) -> None:
        """Leave all connections open, new ones too, and let nothing through them."""
        self._silent = True
        self.strand()

    def heal(self) -> None:
        """Let new connections through again."""
        self._cut = self._silent = False

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = self._dial()
            except OSError:
                near.close()
                continue
            pair = Pair(near, far)
            with self._lock:
                if self._cut:
                    pair.close()
                    continue
                pair.silent = self._silent
                self._pairs.append(pair)
            pair.start()

    def _dial(self) -> socket.socket:
        if isinstance(self._target, int):
            return socket.create_connection(("127.0.0.1", self._target))
        far = socket.socket(socket.AF_UNIX)
        try:
            far.connect(self._target)
        except OSError:
            far.close()
            raise
        return far


class Pair:
    """One connection, from its client to its server."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self._ends = near, far
        self.silent = False

    def start(self) -> None:
        near, far = self._ends
        for ends in ((near, far), (far, near)):
            threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def close(self) -> None:
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK):
                if not self.silent:
                    sink.sendall(data)
        if not self.silent:
            self.close()


def redis_target(direct: Settings) -> int | str:
    """Return where the Redis of these settings listens."""
    bell = urlsplit(direct.redis_url)
    return bell.port or unquote(bell.path)


def database_target(direct: Settings) -> int | str:
    """Return where the PostgreSQL of these settings listens."""
    database = make_url(direct.database_url)
    return f"{database.query['host']}/.s.PGSQL.{database.port or 5432}"


def through(direct: Settings, redis: Line, database: Line) -> dict[str, str]:
    """Return the addresses of the same servers at the near ends of two lines."""
    bell, url = urlsplit(direct.redis_url), make_url(direct.database_url)
    secret = f":{bell.password}@" if bell.password else ""
    near = url.set(host="127.0.0.1", port=database.port, query={})
    return {
        "redis": f"redis://{secret}127.0.0.1:{redis.port}/0",
        "database": near.render_as_string(hide_password=False),
    }
