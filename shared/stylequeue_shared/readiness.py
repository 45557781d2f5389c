"""Waiting until the web server of this machine is ready, and where it is reached."""

import http.client
import time

import click

from stylequeue_shared.errors import MachineError
from stylequeue_shared.settings import Settings

START_SECONDS = 120.0
# How long the web server may live without being ready before we announce it all the
# same: it serves without Redis, for example.
READY_SECONDS = 10.0


class Readiness:
    """Asks the web server until it is ready, and says so once."""

    def __init__(self, settings: Settings) -> None:
        self.announced = False
        self._settings = settings
        self._started = time.monotonic()
        self._alive_since: float | None = None

    def check(self) -> None:
        """Ask once; raise MachineError when the web server never comes up."""
        now = time.monotonic()
        if self._alive_since is None and self._answers("/healthz"):
            self._alive_since = now
        if self._alive_since is None:
            if now - self._started > START_SECONDS:
                raise MachineError(
                    f"the web part does not answer at {address(self._settings)}"
                )
        elif self._answers("/readyz"):
            self._announce("is ready")
        elif now - self._alive_since > READY_SECONDS:
            self._announce("answers, though /readyz says that something is missing")

    def _answers(self, path: str) -> bool:
        connection = http.client.HTTPConnection(
            reachable_host(self._settings), self._settings.port, timeout=2
        )
        try:
            connection.request("GET", path)
            # 400: alive, and expecting to be asked under another host name.
            return connection.getresponse().status in (200, 400)
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _announce(self, state: str) -> None:
        self.announced = True
        click.echo(
            f"\nStyleQueue {state}: {address(self._settings)}\n"
            f"  Jobs and pictures lie in {self._settings.home} (STYLEQUEUE_HOME).\n"
            "  Ctrl-C stops it; the next start finds the jobs again.\n"
        )


def reachable_host(settings: Settings) -> str:
    """Return the host under which this machine reaches its own web server."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
    return everywhere.get(settings.host, settings.host)


def address(settings: Settings) -> str:
    """Return the address to open in a browser."""
    host = reachable_host(settings)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
