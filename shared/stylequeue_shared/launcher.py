"""`stylequeue up`: everything on one machine; a part that ends is started again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from types import FrameType, TracebackType
from typing import Any

import click
import psutil

from stylequeue_shared import preflight, processes
from stylequeue_shared.embedded import EmbeddedRedis, write_privately
from stylequeue_shared.errors import MachineError
from stylequeue_shared.readiness import Readiness, address
from stylequeue_shared.restarts import Ending, RestartedProcess
from stylequeue_shared.settings import Settings

PARTS = ("web", "worker", "housekeeper")
# How long parts may take to end by themselves: a worker hands its job back first.
GRACE_SECONDS = 15.0
TICK = 0.1


def up(settings: Settings, *, grace: float = GRACE_SECONDS) -> int:
    """Run everything until a signal comes or a part is given up; return the status.

    Raises BadConfiguration where this folder, port or disk cannot be used.
    """
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


class Part(RestartedProcess):
    """One part of the installation; a new one waits until the old one is all gone."""

    def __init__(
        self, start: Callable[[], "subprocess.Popen[bytes]"], patience: float
    ) -> None:
        super().__init__(start)
        self._patience = patience
        self._leftovers: set[psutil.Process] = set()
        self._kill_at = 0.0

    def end_leftovers(self, leftovers: set[psutil.Process]) -> None:
        """Ask what the ended part left behind to end; what does not is killed later."""
        self._leftovers = leftovers
        self._kill_at = time.monotonic() + self._patience
        processes.ask(leftovers)

    @property
    def may_start(self) -> bool:
        """Whether the pause is over and nothing is left that a new one would meet."""
        if not self.is_due:
            return False
        left = [one for one in self._leftovers if processes.is_alive(one)]
        if left and time.monotonic() >= self._kill_at:
            return processes.kill(left, patience=1.0)
        return not left


class Launcher:
    """The parts of one running installation."""

    def __init__(self, settings: Settings, signals: Signals, grace: float) -> None:
        self.settings = settings
        self.home = settings.home
        self.signals = signals
        self.grace = grace
        self.parts: dict[str, Part] = {}
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
            self.parts["valkey"] = valkey = Part(self._launch_valkey, patience=0.0)
            valkey.start()
            # Later the other parts wait out its absence, but a Valkey that cannot
            # run here at all ends the start with its own message.
            if valkey.process:
                self._redis.wait(valkey.process)
        for name in () if self.signals.count else PARTS:
            start = partial(self._spawn, part_command(name), stdin=subprocess.DEVNULL)
            # Workers of a supervisor that was killed hand their jobs back first.
            patience = self.grace if name == "worker" else 0.0
            self.parts[name] = Part(start, patience)
            self.parts[name].start()
        self._write_down()

    def _launch_valkey(self) -> "subprocess.Popen[bytes]":
        return self._redis.launch(self._spawn)

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
            preexec_fn=processes.die_with_parent(),
            **options,
        )

    def _running(self) -> "dict[str, subprocess.Popen[bytes]]":
        return {
            name: part.process
            for name, part in self.parts.items()
            if part.process and part.is_running
        }

    def _write_down(self) -> None:
        """Note what runs, for the start after one in which we were killed."""
        parts = {}
        for name, process in self._running().items():
            with suppress(psutil.Error):
                started = psutil.Process(process.pid).create_time()
                parts[name] = {"pid": process.pid, "started": started}
        written = {
            "pid": os.getpid(),
            "address": address(self.settings),
            "parts": parts,
        }
        try:
            write_privately(preflight.running_file(self.home), json.dumps(written))
        except OSError as error:
            # A full disk, say. What runs is found by its mark, too.
            click.echo(f"stylequeue: running.json is not written ({error})", err=True)

    def _watch(self) -> int:
        """Start ended parts again until a signal comes or one is given up."""
        ready = Readiness(self.settings)
        while not self.signals.count:
            for name, part in self.parts.items():
                if ending := part.find_ending():
                    self._report(name, ending)
                    if part.given_up:
                        return 1
                    part.end_leftovers(self._leftovers())
                elif part.may_start:
                    part.start()
                    self._write_down()
            if not ready.announced:
                ready.check()
            time.sleep(TICK)
        return 0

    def _report(self, name: str, ending: Ending) -> None:
        last = self._redis.last_line() if name == "valkey" else ""
        said = f"stylequeue: the {name} part {ending.how}"
        if last:
            said += f" (it last wrote: {last})"
        if ending.pause is not None:
            said += f"; it is started again in {ending.pause:g} s"
        elif ending.failures > 1:
            said += f", {ending.failures} times in a row; stopping the others"
        else:
            said += ", and starting it again cannot help; stopping the others"
        click.echo(said, err=True)

    def _leftovers(self) -> set[psutil.Process]:
        """Find what parts that ended have left behind."""
        found = processes.marked(self.home)
        live = processes.with_descendants(_as_psutil(self._running()))
        return {one for one in found - live if one.pid != os.getpid()}

    def _stop(self) -> None:
        """End every part: its main process decides how, for as long as it is given."""
        hurry = self.signals.count + 1
        running = self._running()
        valkey = running.pop("valkey", None)
        family = processes.with_descendants(_as_psutil(running))
        for process in running.values():
            # To the main process alone: it knows how to end its children.
            process.terminate()
        processes.wait_until(
            lambda: (
                self.signals.count >= hurry
                or all(process.poll() is not None for process in running.values())
            ),
            self.grace,
        )
        family |= processes.with_descendants(processes.marked(self.home))
        processes.kill(one for one in family if not valkey or one.pid != valkey.pid)
        for process in running.values():
            process.wait()
        if valkey:
            # Last, since the others still say goodbye to it.
            self._redis.stop(valkey)
        preflight.running_file(self.home).unlink(missing_ok=True)


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


def _as_psutil(parts: Mapping[str, "subprocess.Popen[bytes]"]) -> set[psutil.Process]:
    found = set()
    for part in parts.values():
        with suppress(psutil.Error):
            found.add(psutil.Process(part.pid))
    return found
