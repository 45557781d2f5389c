"""The product's own processes, as tests start, watch and disturb them."""

import json
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
from sqlalchemy import select

from bench.services import Client, spawn
from stylequeue_shared.database import Database
from stylequeue_shared.models import Job, JobState, Worker
from stylequeue_shared.queue import Bell
from stylequeue_shared.settings import Settings
from stylequeue_shared.store import open_store
from tests.worker.submitting import submit

PATIENCE = 90.0


class Site:
    """An installation with a worker, and what tests ask of them.

    `seen_by` are the settings with which tests look at it, if not the worker's own.
    """

    def __init__(
        self,
        settings: Settings,
        seen_by: Settings | None = None,
        name: str = "worker",
    ) -> None:
        self.settings = settings
        seen_by = seen_by or settings
        self.database = Database(seen_by.database_url)
        self.store = open_store(seen_by.store_url)
        self.bell = Bell(seen_by)
        self.log = settings.home / f"{name}.log"
        self._family: set[psutil.Process] = set()
        self.launcher = self.start()

    def start(self) -> "subprocess.Popen[bytes]":
        return spawn("worker", self.settings, self.log)

    def close(self) -> None:
        with suppress(psutil.Error):
            launcher = psutil.Process(self.launcher.pid)
            self._family.update(launcher.children(recursive=True))
        self.launcher.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.launcher.wait(30)
        for process in self._family:
            with suppress(psutil.Error):
                process.kill()
        self.launcher.kill()
        self.launcher.wait()
        self.bell.close()
        self.database.close()

    def submit(self, **settings: Any) -> str:
        job = submit(self.database, self.store, **settings)
        assert self.bell.ring(job)
        return job

    def events(self) -> list[dict[str, Any]]:
        """Read our own lines of the log; Celery may say something in between."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def row(self, job_id: str) -> Any:
        with self.database.read() as connection:
            return connection.execute(
                select(Job.__table__).where(Job.id == job_id)
            ).one()

    def workers(self) -> list[Any]:
        with self.database.read() as connection:
            return list(connection.execute(select(Worker.__table__)))

    def wait_for(
        self, condition: Callable[[], bool], seconds: float = PATIENCE
    ) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()[-5000:]
            time.sleep(0.05)

    def ended(self, job_id: str) -> Any:
        self.wait_for(lambda: JobState(self.row(job_id).state).is_terminal)
        return self.row(job_id)

    def painting(self, job_id: str) -> None:
        """Wait until the job's first steps are done."""
        self.wait_for(lambda: bool(self.row(job_id).step))

    def processes(self) -> tuple[psutil.Process, psutil.Process]:
        """Celery's main process and the child that runs jobs."""
        (main,) = psutil.Process(self.launcher.pid).children()
        self.wait_for(lambda: len(main.children()) == 1)
        (child,) = main.children()
        self._family |= {main, child}
        return main, child


class Web(Client):
    """The web server, and how a client asks it."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("127.0.0.1", settings.port)
        self.log = settings.home / "web.log"
        self.process = spawn("web", settings, self.log)

    def is_ready(self) -> bool:
        return self.is_up("/readyz")

    def kill(self) -> None:
        """Kill it with all its children, as a machine that loses its power does."""
        with suppress(psutil.NoSuchProcess):
            server = psutil.Process(self.process.pid)
            for process in (*server.children(), server):
                process.kill()
        self.process.wait()


def is_gone(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True
