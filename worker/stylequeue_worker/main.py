"""`stylequeue worker`: one Celery worker per GPU, which live and end together."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from types import FrameType

import structlog
from pydantic import SecretStr

from stylequeue_shared import registry
from stylequeue_shared.database import OUTAGE, Database
from stylequeue_shared.settings import PREFIX, Settings
from stylequeue_worker.devices import Place, places

# A worker hands its job back within nine seconds; what hangs then is ended.
GRACE_SECONDS = 9.6
TICK = 0.1

log = structlog.get_logger()


def run_workers(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT, or until a worker dies; return the exit status."""
    return Supervisor(settings).run()


class Supervisor:
    """Starts the Celery workers of this machine and ends them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workers: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping = False

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        chosen = places(self._settings)
        if chosen[0].is_cpu:
            log.warning("no_gpu_running_on_cpu", workers=len(chosen))
        try:
            for place in chosen:
                self._start(place)
            died = self._watch()
        finally:
            statuses = self._end()
        # What was told to stop and did not has let go of its job, or its lease will.
        return (
            1
            if died or any(status not in (0, -signal.SIGKILL) for status in statuses)
            else 0
        )

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _start(self, place: Place) -> None:
        # Unique, so that two workers never answer to one name or share a mailbox.
        name = f"{secrets.token_hex(4)}@{socket.gethostname()}"
        self._workers[name] = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "stylequeue_worker.serve"),
                *(name, str(os.getpid())),
            ],
            env={**os.environ, **environment(self._settings), **place.environment},
            stdin=subprocess.DEVNULL,
            # SIGTERM to a whole group would kill the child in the middle of a step.
            start_new_session=True,
        )
        log.info(
            "worker_started",
            worker=name,
            device=place.environment["STYLEQUEUE_DEVICE"],
            gpu=place.environment["CUDA_VISIBLE_DEVICES"] or None,
        )

    def _watch(self) -> bool:
        """Wait; return whether a worker died that should not have."""
        while not self._stopping:
            for name, process in self._workers.items():
                if process.poll() is not None:
                    log.error("worker_died", worker=name, status=process.returncode)
                    return True
            time.sleep(TICK)
        return False

    def _end(self) -> list[int]:
        for process in self._workers.values():
            # To Celery's main process alone: it tells its child to hand back.
            process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for process in self._workers.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0))
            # Whatever is left of it: a child that hangs, or that lost its parent.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._leave()
        return [process.returncode for process in self._workers.values()]

    def _leave(self) -> None:
        database = Database(self._settings.database_url, pooled=False)
        try:
            for name in self._workers:
                registry.leave(database, name)
        except OUTAGE as error:
            log.warning("worker_not_removed", error=str(error))
        finally:
            database.close()


def environment(settings: Settings) -> dict[str, str]:
    """Write settings that were given, by whatever road, as environment variables."""
    written = {}
    for name in sorted(settings.model_fields_set):
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        elif isinstance(value, tuple):
            value = ",".join(value)
        elif isinstance(value, bool):
            value = int(value)
        if value is not None:
            written[f"{PREFIX}{name}".upper()] = str(value)
    return written
