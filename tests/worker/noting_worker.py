"""A worker as `stylequeue worker` starts it, whose task only notes the job's id.

    python noting_worker.py FILE    with STYLEQUEUE_REDIS in the environment

It loads neither torch nor a network, so that tests of the broker start it quickly.
"""

import os
import sys
from pathlib import Path
from typing import Any

from celery import Celery

from stylequeue_shared import logs
from stylequeue_shared.queue import TASK
from stylequeue_shared.settings import load_settings
from stylequeue_worker import serve


def register(app: Celery, *others: Any) -> None:
    """Give the app a task that appends the job's id to the file."""

    def run(job_id: str) -> None:
        with Path(sys.argv[1]).open("a") as noted:
            noted.write(f"{job_id}\n")

    app.task(name=TASK)(run)


if __name__ == "__main__":
    serve.register = register
    logs.configure()
    sys.exit(serve.serve(load_settings(), "noting@here", os.getppid()))
