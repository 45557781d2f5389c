"""The web server: gunicorn with our worker, run in this process."""

import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import structlog
from flask import Flask
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]
from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]
from gunicorn.errors import (  # type: ignore[import-untyped]
    AppImportError,
    HaltServer,
)
from gunicorn.glogging import Logger  # type: ignore[import-untyped]

from stylequeue_shared.errors import BadConfiguration
from stylequeue_shared.settings import Settings

# Imported before the fork, so that the processes share what it brings; called after
# it, since neither SQLite's nor PostgreSQL's connections survive one.
from stylequeue_web.app import create_app
from stylequeue_web.buffering_worker import BufferingWorker
from stylequeue_web.connection import Limits
from stylequeue_web.slots import RENDITIONS, UPLOADS, WAITING_RENDITIONS

# A poll takes well under a millisecond, an upload some seconds in a child process:
# threads cover the waiting for it, and never wait for a client. Four are left for quick
# requests, whatever the costly ones do. Two processes use the second core.
MAX_PROCESSES = 4
THREADS = UPLOADS + RENDITIONS + WAITING_RENDITIONS + 4
# A connection is a file, and its body may be another.
WANTED_FILES = 8192
MAX_CONNECTIONS = 2000

log = structlog.get_logger()


class PlainLogger(Logger):
    """Hands gunicorn's own messages to our logging, which has one format."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


class Server(BaseApplication):
    """gunicorn without its command line, files and environment variables."""

    def __init__(self, settings: Settings, limits: Limits | None = None) -> None:
        self._settings = settings
        self._limits = limits or Limits()
        super().__init__()

    def load_config(self) -> None:
        for name, value in gunicorn_settings(self._settings, self._limits).items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        try:
            return create_app(self._settings)
        except BadConfiguration as error:
            # Said in one line by gunicorn, which then ends, too.
            raise AppImportError(error.message) from None


def gunicorn_settings(settings: Settings, limits: Limits) -> dict[str, Any]:
    """Return every setting in which we differ from gunicorn's defaults."""
    return {
        "bind": bind_address(settings.host, settings.port),
        "worker_class": type("Worker", (BufferingWorker,), {"limits": limits}),
        "workers": min(max(os.cpu_count() or 1, 2), MAX_PROCESSES),
        "threads": THREADS,
        "worker_connections": _connections(),
        # Longer than the pause between two polls, so that a page keeps its connection.
        "keepalive": 15,
        # Below the time that `stylequeue up` gives its parts, and Docker a container.
        "graceful_timeout": 8,
        "timeout": 60,
        "limit_request_line": 4094,
        "limit_request_fields": 64,
        "limit_request_field_size": 8190,
        "forwarder_headers": "",
        # Our own middleware says which proxies are believed: see forwarded.py.
        "secure_scheme_headers": {},
        # The heartbeat is a file; on a busy disk writing it can block for seconds.
        "worker_tmp_dir": _memory_folder(),
        # It would lie outside HOME, and be shared by all servers of this user.
        "control_socket_disable": True,
        "accesslog": None,
        "loglevel": "warning",
        "logger_class": PlainLogger,
        "umask": 0o077,
        "when_ready": _say_ready,
    }


def serve(settings: Settings, limits: Limits | None = None) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status."""
    process = os.getpid()
    try:
        Server(settings, limits).run()
    except HaltServer as halted:
        # A second process that failed to start while gunicorn ended for the first.
        return 2 if halted.exit_status == Arbiter.APP_LOAD_ERROR else 1
    except SystemExit as ended:
        # A bad setting that shows only in the application. (The forked processes end
        # through here, too, and gunicorn reads their status.)
        if ended.code == Arbiter.APP_LOAD_ERROR and os.getpid() == process:
            return 2
        raise
    return 0


def bind_address(host: str, port: int) -> str:
    """Write host and port as gunicorn reads them: IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _say_ready(arbiter: Arbiter) -> None:
    log.info("web_listening", address=[str(one) for one in arbiter.LISTENERS])


def _connections() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > WANTED_FILES:
        hard = WANTED_FILES
    if soft != resource.RLIM_INFINITY and soft < hard:
        resource.setrlimit(
            resource.RLIMIT_NOFILE,
            (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
        )
    return max(min(hard // 3, MAX_CONNECTIONS), THREADS + 1)


def _memory_folder() -> str | None:
    folder = Path("/dev/shm")
    try:
        with tempfile.TemporaryFile(dir=folder):
            return str(folder)
    except OSError:
        return None
