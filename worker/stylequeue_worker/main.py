"""`stylequeue worker`: one Celery worker per GPU; one that ends is started again."""

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

from stylequeue_shared import jobs, processes, registry
from stylequeue_shared.database import OUTAGE, Database
from stylequeue_shared.restarts import GAVE_UP, Ending, RestartedProcess
from stylequeue_shared.settings import PREFIX, Settings
from stylequeue_worker.devices import Place, places

# A worker hands its job back within nine seconds; what hangs then is ended.
GRACE_SECONDS = 9.6
GONE_SECONDS = 2.0
TICK = 0.1

log = structlog.get_logger()


def run_workers(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT, or until all workers are given up.

    Return the exit status.
    """
    return Supervisor(settings).run()


class Worker(RestartedProcess):
    """The Celery worker of one place, under another name after each start."""

    def __init__(self, settings: Settings, place: Place) -> None:
        super().__init__(self._spawn)
        self.name = ""
        self.place = place
        self._settings = settings

    def _spawn(self) -> "subprocess.Popen[bytes]":
        # Unique, so that two workers never answer to one name or share a mailbox.
        self.name = f"{secrets.token_hex(4)}@{socket.gethostname()}"
        process = subprocess.Popen(
            worker_command(self.name),
            env={
                **os.environ,
                **environment(self._settings),
                **self.place.environment,
            },
            stdin=subprocess.DEVNULL,
            # SIGTERM to a whole group would kill the child in the middle of a step.
            start_new_session=True,
        )
        log.info("worker_started", worker=self.name, **self.place.description)
        return process

    def kill(self) -> None:
        """Kill what is left of it: a child that hangs, or that lost its parent."""
        if self.process:
            self._signal_group(signal.SIGKILL)
            self.process.wait()

    @property
    def is_gone(self) -> bool:
        """Whether no process of its group is left."""
        return not self._signal_group(0)

    def _signal_group(self, number: int) -> bool:
        """Send a signal to all its processes; return whether there were any."""
        # macOS refuses permission where only dead processes are left.
        with suppress(ProcessLookupError, PermissionError):
            if self.process:
                os.killpg(self.process.pid, number)
                return True
        return False


class Supervisor:
    """Starts the Celery workers of this machine, again if need be, and ends them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workers: list[Worker] = []
        self._stopping = False

    def run(self) -> int:
        # Before the signals are caught: a driver that hangs must not hold up a stop.
        chosen = places(self._settings)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        if chosen[0].is_cpu:
            log.warning("no_gpu_running_on_cpu", workers=len(chosen))
        self._workers = [Worker(self._settings, place) for place in chosen]
        try:
            for worker in self._workers:
                worker.start()
            gave_up = self._watch()
        finally:
            ended_well = self._end()
        return gave_up or int(not ended_well)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _watch(self) -> int:
        """Start ended workers again; return GAVE_UP once none is left, 0 on a stop."""
        while not self._stopping:
            for worker in self._workers:
                if ending := worker.find_ending():
                    self._clear(worker, ending)
                elif worker.is_due:
                    worker.start()
            if all(worker.given_up for worker in self._workers):
                log.critical("all_workers_given_up", workers=len(self._workers))
                return GAVE_UP
            time.sleep(TICK)
        return 0

    def _clear(self, worker: Worker, ending: Ending) -> None:
        """Remove what an ended worker leaves: processes, its row, its running job."""
        facts = {"worker": worker.name, "how": ending.how, **worker.place.description}
        if ending.pause is None:
            log.critical("worker_given_up", **facts, failures=ending.failures)
        else:
            log.error("worker_died", **facts, started_again_in=ending.pause)
        worker.kill()
        # A process that dies still holds its GPU's memory for a moment. (Where nobody
        # reaps the dead, one stays for ever; so the wait has an end.)
        processes.wait_until(lambda: worker.is_gone, GONE_SECONDS)
        self._forget([worker])

    def _end(self) -> bool:
        """End all workers; return whether all that ran ended as they were told."""
        running = [worker for worker in self._workers if worker.is_running]
        for worker in running:
            # To Celery's main process alone: it tells its child to hand back.
            if worker.process:
                worker.process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for worker in running:
            if worker.process:
                with suppress(subprocess.TimeoutExpired):
                    worker.process.wait(max(deadline - time.monotonic(), 0))
            worker.kill()
        self._forget(running)
        # What was told to stop and did not has let go of its job, or its lease will.
        well = (0, -signal.SIGKILL)
        return all(one.process and one.process.returncode in well for one in running)

    def _forget(self, workers: list[Worker]) -> None:
        """Return the jobs that ended workers ran, and remove them from the registry.

        The processes are dead, so their jobs need not wait for their leases.
        """
        database = Database(self._settings.database_url, pooled=False)
        try:
            for worker in workers:
                for job in jobs.return_orphans(database, worker.name, None):
                    log.warning("job_of_a_lost_worker", job=job, worker=worker.name)
                registry.leave(database, worker.name)
        except OUTAGE as error:
            log.warning("worker_not_removed", error=str(error))
        finally:
            database.close()


def worker_command(name: str) -> list[str]:
    """Return the command that runs one Celery worker as a child of this process."""
    module = "stylequeue_worker.serve"
    return [sys.executable, "-P", "-m", module, name, str(os.getpid())]


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
