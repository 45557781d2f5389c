"""Logging: one line per event, JSON when stderr is not a terminal.

Records of other libraries (Celery, gunicorn, Alembic) take the same road as ours.
"""

import logging
import re
import sys
from typing import TextIO

import structlog
from structlog.typing import Processor

# Passwords in addresses, which drivers like to quote in their error messages.
SECRET = re.compile(r"(?<=://)([^/\s:@'\"]*):[^/\s'\"]*@")
# Chatty below this level: a line for each task, retry or migration step.
QUIET = {
    "celery.app.trace": logging.WARNING,
    "celery.worker.strategy": logging.WARNING,
    "kombu": logging.WARNING,
    "alembic": logging.WARNING,
    "PIL": logging.INFO,
}


class OneLine(structlog.stdlib.ProcessorFormatter):
    """Renders a record and hides passwords wherever they stand in it."""

    def format(self, record: logging.LogRecord) -> str:
        return SECRET.sub(r"\1:***@", super().format(record))


def configure(stream: TextIO | None = None) -> None:
    """Send all logging of this process to stderr; calling it again replaces it."""
    stream = stream or sys.stderr
    terminal = stream.isatty()
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        OneLine(
            foreign_pre_chain=[*before, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(_for_a_person() if terminal else _for_a_machine()),
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    for name, level in QUIET.items():
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(True)


def _for_a_person() -> list[Processor]:
    # Where Rich is installed, its tracebacks would show variables: passwords.
    return [
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    ]


def _for_a_machine() -> list[Processor]:
    return [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(default=str),
    ]
