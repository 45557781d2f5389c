"""The process that runs jobs: the only one that imports torch or touches CUDA."""

import os
import socket
import threading
import time
from dataclasses import replace

import structlog

from stylequeue_shared import jobs, registry
from stylequeue_shared.database import OUTAGE, Database
from stylequeue_shared.settings import Settings
from stylequeue_shared.store import open_store
from stylequeue_worker.draining import Draining
from stylequeue_worker.faults import Faults
from stylequeue_worker.lease import end_process

BEAT_SECONDS = 5.0
PARENT_SECONDS = 1.0
TICK = 0.1

log = structlog.get_logger()


class Child:
    """Everything that outlives one job: connections, the engine, the heartbeat."""

    def __init__(
        self, settings: Settings, name: str, draining: Draining, faults: Faults
    ) -> None:
        # Here and not above: the main process imports this module, and must not
        # import torch.
        from stylequeue_worker.runner import Runner
        from stylequeue_worker.studio import Studio

        self._parent = os.getppid()
        self._draining = draining
        self._database = Database(settings.database_url)
        # First: what follows takes seconds.
        self._return_orphans(name, faults)
        store = open_store(settings.store_url)
        studio = Studio(settings)
        self._runner = Runner(
            settings, self._database, store, studio, name, draining, faults
        )
        self._runner.tally.out_of_memory = faults.kills_for_memory
        self._identity = registry.Identity(
            name,
            socket.gethostname(),
            studio.device_name,
            studio.memory_bytes,
            studio.budget,
            studio.on_gpu,
            **(vars(studio.speed) if studio.speed else {}),
        )
        for watch in (self._beat, self._end_with_parent):
            threading.Thread(target=watch, daemon=True).start()
        log.info("worker_ready", worker=name, device=studio.device_name)

    def run_next(self) -> None:
        """Run the job whose turn it is, if any waits.

        Does not return from one after which this worker takes no more: while a task
        lasts Celery fetches no message, so they are left to workers that do.
        """
        self._runner.run_next()
        if self._runner.is_broken:
            # Celery starts another, with a GPU's context that works.
            log.warning("child_ends_after_a_device_failed")
            end_process()
        while self._runner.refuses is not None and not self._draining.ends:
            time.sleep(TICK)

    def _return_orphans(self, name: str, faults: Faults) -> None:
        """Give back what the child before this one ran, if it vanished."""
        cause = faults.bury()
        try:
            for job in jobs.return_orphans(self._database, name, cause):
                why = cause.code if cause else None
                log.warning("job_of_a_lost_child", job=job, cause=why)
        except OUTAGE as error:
            log.warning("job_left_to_its_lease", error=str(error))

    def _beat(self) -> None:
        while True:
            try:
                tally = self._runner.tally
                identity = replace(
                    self._identity,
                    refuses=self._runner.refuses,
                    pace=tally.pace,
                    tally=tally.counts(),
                )
                if (drain := registry.beat(self._database, identity)) is not None:
                    self._runner.drain(hand_back=drain == "hand_back")
            except OUTAGE as error:
                log.warning("heartbeat_not_written", error=str(error))
            except Exception:
                # A defect of ours, but no reason to fall silent.
                log.exception("heartbeat_not_written")
            time.sleep(BEAT_SECONDS)

    def _end_with_parent(self) -> None:
        """End this process when Celery's main process was killed.

        Nobody would send it another job, and it would keep its GPU for ever. Celery
        has Linux do this at once; other systems need it. The lease brings the job back.
        """
        while os.getppid() == self._parent:
            time.sleep(PARENT_SECONDS)
        log.error("main_process_gone")
        os._exit(1)
