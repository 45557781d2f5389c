"""The one task, and what its process holds from its start to its end."""

import os
import signal
from typing import Any

import structlog
from celery import Celery, signals

from stylequeue_shared.errors import BadConfiguration
from stylequeue_shared.queue import TASK
from stylequeue_shared.restarts import BAD_CONFIGURATION
from stylequeue_shared.settings import Settings
from stylequeue_worker.child import Child
from stylequeue_worker.draining import Draining
from stylequeue_worker.faults import Faults

log = structlog.get_logger()


def register(
    app: Celery, settings: Settings, name: str, draining: Draining, faults: Faults
) -> None:
    """Give the app its task, run in the child that Celery forks."""
    held: list[Child] = []

    def start(**options: Any) -> None:
        try:
            held.append(Child(settings, name, draining, faults))
        except Exception as error:
            # Celery would start the child again, for ever and in vain.
            log.critical("worker_cannot_start", exc_info=True)
            is_setting = isinstance(error, BadConfiguration)
            draining.start_broken(BAD_CONFIGURATION if is_setting else 1)
            os.kill(os.getppid(), signal.SIGTERM)

    def run(job_id: str) -> None:
        """Run the job whose turn it is. The id is a hint: the database decides."""
        if held:
            held[0].run_next()

    signals.worker_process_init.connect(start, weak=False)
    app.task(name=TASK)(run)
