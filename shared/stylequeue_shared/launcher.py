"""`stylequeue up`: everything on one machine, as parts that live and end together."""

import ctypes
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

import click
import psutil

from stylequeue_shared import preflight, processes
from stylequeue_shared.embedded import EmbeddedRedis, write_privately
from stylequeue_shared.errors import MachineError
from stylequeue_shared.settings import Settings

PARTS = ("web", "worker", "housekeeper")
# How long parts may take to end by themselves: a worker hands its job back first.
GRACE_SECONDS = 15.0
START_SECONDS = 120.0
# How long the web server may live without being ready before we announce it all the
# same: it serves without Redis, for example.
READY_SECONDS = 10.0
TICK = 0.1
PR_SET_PDEATHSIG = 1


def up(settings: Settings, *, grace: float = GRACE_SECONDS) -> int:
    """Run everything until a signal comes or a part dies; return the exit status.

    Raises BadConfiguration where this folder, port or disk cannot be used.
    """
    # Whatever the folder's own mode: pictures are nobody else's business.
    os.umask(0o077)
    with Signals() as signals:
        preflight.make_home(settings.home)
        with preflight.only_one(settings.home):
            end_leftovers(settings, grace)
            preflight.check_address(settings)
            preflight.check_room(settings.home)
            return Launcher(settings, signals, grace).run()


class Signals:
    """Counts the requests to stop, instead of being ended by them."""

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # A SIGHUP ignored by nohup stays so.
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._count)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _count(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


class Launcher:
    """The parts of one running installation."""

    def __init__(self, settings: Settings, signals: Signals, grace: float) -> None:
        self.settings = settings
        self.home = settings.home
        self.signals = signals
        self.grace = grace
        self.parts: dict[str, subprocess.Popen[bytes]] = {}
        self._redis = EmbeddedRedis(self.home)

    def run(self) -> int:
        try:
            self._start()
            return self._watch()
        finally:
            self._stop()

    def _start(self) -> None:
        preflight.migrate_database(self.settings)
        if self.settings.redis is None and not self.signals.count:
            self.parts["valkey"] = self._redis.start(self._spawn)
        for name in () if self.signals.count else PARTS:
            self.parts[name] = self._spawn(part_command(name), stdin=subprocess.DEVNULL)
        self._write_down()

    def _spawn(self, command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        environment = {
            **os.environ,
            "STYLEQUEUE_HOME": str(self.home),
            processes.MARK: processes.mark(self.home),
        }
        return subprocess.Popen(
            command,
            env=environment,
            # A Ctrl-C at the terminal must reach only us: a Celery child that gets
            # it, too, is killed in the middle of a step.
            start_new_session=True,
            preexec_fn=_die_with_parent(),
            **options,
        )

    def _write_down(self) -> None:
        """Note what runs, for the start after one in which we were killed."""
        parts = {}
        for name, process in self.parts.items():
            with suppress(psutil.Error):
                started = psutil.Process(process.pid).create_time()
                parts[name] = {"pid": process.pid, "started": started}
        written = {
            "pid": os.getpid(),
            "address": address(self.settings),
            "parts": parts,
        }
        write_privately(preflight.running_file(self.home), json.dumps(written))

    def _watch(self) -> int:
        """Wait for a signal or a death; say when everything is ready."""
        ready = Readiness(self.settings)
        while not self.signals.count:
            for name, process in self.parts.items():
                if process.poll() is not None:
                    click.echo(
                        f"stylequeue: the {name} part {_ending(process.returncode)}; "
                        "stopping the others",
                        err=True,
                    )
                    return 1
            if not ready.announced:
                ready.check()
            time.sleep(TICK)
        return 0

    def _stop(self) -> None:
        """End every part: its main process decides how, for as long as it is given."""
        hurry = self.signals.count + 1
        own = {name: part for name, part in self.parts.items() if name != "valkey"}
        family = processes.with_descendants(_as_psutil(own))
        for part in own.values():
            # To the main process alone: it knows how to end its children.
            part.terminate()
        processes.wait_until(
            lambda: (
                self.signals.count >= hurry
                or all(part.poll() is not None for part in own.values())
            ),
            self.grace,
        )
        valkey = self.parts.get("valkey")
        family |= processes.with_descendants(processes.marked(self.home))
        processes.kill(one for one in family if not valkey or one.pid != valkey.pid)
        for part in own.values():
            part.wait()
        if valkey:
            # Last, since the others still say goodbye to it.
            self._redis.stop(valkey)
        preflight.running_file(self.home).unlink(missing_ok=True)


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


def end_leftovers(settings: Settings, grace: float) -> None:
    """End what a launcher left that was killed before it could do so itself."""
    home = settings.home
    written = preflight.read_running(home).get("parts")
    parts = {}
    for name, part in (written if isinstance(written, dict) else {}).items():
        with suppress(KeyError, TypeError):
            process = processes.find(part["pid"], part["started"])
            if process and processes.is_alive(process):
                parts[name] = process
    valkey = parts.pop("valkey", None)
    family = processes.with_descendants({*parts.values(), *processes.marked(home)})
    if not family and not valkey:
        return
    click.echo("stylequeue: ending what an earlier start left behind", err=True)
    processes.ask(parts.values())
    processes.wait_until(
        lambda: not any(map(processes.is_alive, parts.values())), grace
    )
    gone = processes.kill(one for one in family if one != valkey)
    if valkey:
        processes.ask([valkey])
        processes.wait_until(lambda: not processes.is_alive(valkey), 5)
        gone = processes.kill([valkey]) and gone
    if not gone:
        raise MachineError(
            f"STYLEQUEUE_HOME: processes of an earlier start still use {home} and "
            "cannot be ended; end them, or set it to another folder"
        )


def part_command(name: str) -> list[str]:
    """Return the command that runs one part, in this very installation."""
    # Safe path: nothing in the current folder may stand in for a library.
    return [sys.executable, "-P", "-m", "stylequeue_shared.cli", name]


def reachable_host(settings: Settings) -> str:
    """Return the host under which this machine reaches its own web server."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
    return everywhere.get(settings.host, settings.host)


def address(settings: Settings) -> str:
    """Return the address to open in a browser."""
    host = reachable_host(settings)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _as_psutil(parts: Mapping[str, "subprocess.Popen[bytes]"]) -> set[psutil.Process]:
    found = set()
    for part in parts.values():
        with suppress(psutil.Error):
            found.add(psutil.Process(part.pid))
    return found


def _ending(status: int) -> str:
    if -status in set(signal.Signals):
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def _die_with_parent() -> Callable[[], None] | None:
    """Have Linux end a part when we are killed; elsewhere the next start does it."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def ask_for_signal() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return ask_for_signal
