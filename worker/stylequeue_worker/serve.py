"""One Celery worker: a main process that answers pings, and a child that runs jobs.

Run as `python -m stylequeue_worker.serve NAME PARENT_PID` by `stylequeue worker`.
"""

import os
import signal
import sys
import threading
import time
import warnings
from typing import Any

import structlog
from celery import Celery, signals
from celery.exceptions import CPendingDeprecationWarning, SecurityWarning

from stylequeue_shared import logs
from stylequeue_shared.queue import worker_celery
from stylequeue_shared.settings import Settings, load_settings
from stylequeue_worker.draining import Draining
from stylequeue_worker.faults import Faults
from stylequeue_worker.tasks import register

PARENT_SECONDS = 1.0

log = structlog.get_logger()


def serve(settings: Settings, name: str, parent: int) -> int:
    """Run one worker until SIGTERM; return the exit status."""
    # Celery warns root of pickle, which nothing here accepts.
    warnings.simplefilter("ignore", SecurityWarning)
    draining = Draining()
    app = make_app(settings, name, draining)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    worker = app.Worker(
        hostname=name,
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    # Celery warns at each reconnection of a setting that Celery 6 will have and that
    # we have set. Making the worker has it show such warnings, so this comes after.
    warnings.simplefilter("ignore", CPendingDeprecationWarning)
    worker.start()
    log.info("worker_stopped", worker=name, exit=worker.exitcode)
    return draining.broken or worker.exitcode or 0


def make_app(settings: Settings, name: str, draining: Draining) -> Celery:
    """Return the Celery app with its task, nothing of torch or CUDA imported yet."""
    app = worker_celery(settings)

    def keep_our_logging(**options: Any) -> None:
        """Be there: Celery sets up its own logging only where nobody listens."""

    def drain(**options: Any) -> None:
        draining.start()

    signals.setup_logging.connect(keep_our_logging, weak=False)
    signals.worker_shutting_down.connect(drain, weak=False)
    register(app, settings, name, draining, Faults())
    return app


def _end_with(parent: int) -> None:
    """Shut down when `stylequeue worker` was killed: nobody else would tell us."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    log.warning("launcher_gone_shutting_down")
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    configured = load_settings()
    logs.configure()
    sys.exit(serve(configured, sys.argv[1], int(sys.argv[2])))
