"""Small real jobs on real workers, while a monkey breaks what can break.

    python -m bench.chaos [--jobs 200] [--workers 4] [--seed 1] [--pause 5]

A real PostgreSQL, a real Valkey, a housekeeper and workers, each started anew as soon
as it has died. The monkey kills, stops and wakes them, restarts and flushes the
servers, has them refuse writes, sets the clock back, and fills or slows down the disk
that pictures lie on. Every job is one of a few kinds, each of which was painted once
before without any disturbance: all pictures of a kind are to be equal.
"""

import argparse
import hashlib
import io
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil
from PIL import Image
from sqlalchemy import select

from bench import faults, machine
from bench.services import Part, Services
from stylequeue_shared import jobs
from stylequeue_shared.artefacts import original_key, result_key
from stylequeue_shared.database import OUTAGE, Database
from stylequeue_shared.decoding import Inspected
from stylequeue_shared.images import encode_png
from stylequeue_shared.job_settings import complete_settings
from stylequeue_shared.models import Job, JobState
from stylequeue_shared.settings import Settings
from stylequeue_shared.store import Store, open_store

LEASE_SECONDS = 5.0
STORE_MB = 256
TICK = 0.2
# After the last disturbance, for what is left; a job takes a fraction of it.
SETTLE_SECONDS = 300.0
SHALLOW = {"content_layers": ["conv1_1"], "style_layers": ["conv1_1", "conv2_1"]}
# Different ways through the engine: its optimisers, starts, scales and layers.
KINDS: tuple[dict[str, Any], ...] = (
    {"image_size": 96, "steps": 150},
    {"image_size": 96, "steps": 200, "init": "noise", "pooling": "average"},
    {"image_size": 96, "steps": 150, "scales": 2, "preserve_colors": "luminance"},
    {"image_size": 96, "steps": 150, "optimizer": "adam", "tv_weight": 1e-4},
    {"image_size": 96, "steps": 800, "snapshot_every": 100, **SHALLOW},
)

T = TypeVar("T")


@dataclass
class Blow:
    """What the monkey did to a running attempt that is to be picked up again."""

    what: str
    job: str
    attempt: int
    step: int
    pace: float
    at: float


@dataclass
class Outcome:
    """What came of it all."""

    jobs: int
    blows: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    # Jobs that vanished or failed, that two attempts ended, or one that had lost them,
    # that came to no end, and whose picture is not that of the undisturbed run.
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    differ: list[str] = field(default_factory=list)
    # Of each blow to a running job: the steps and seconds of work done again, and how
    # long until the job ran again.
    lost_steps: list[float] = field(default_factory=list)
    lost_seconds: list[float] = field(default_factory=list)
    recovery_seconds: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Whether every promise was kept."""
        broken = self.lost, self.doubled, self.stale, self.stuck, self.differ
        return not any(broken)


def main() -> int:
    """Disturb, wait for the end, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, default=5.0, help="between two blows")
    options = parser.parse_args()
    # Else what was started would outlive a run that is told to stop.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found = machine.describe()
    with tempfile.TemporaryDirectory() as folder:
        outcome = disturb(
            *(Path(folder), options.jobs, options.workers, options.seed),
            pause=options.pause,
            say=partial(print, flush=True),
        )
    found |= {"seed": options.seed, "workers": options.workers}
    machine.report("chaos", rows(outcome), found)
    return 0 if outcome.is_clean else 1


def disturb(
    folder: Path,
    count: int,
    workers: int,
    seed: int,
    *,
    pause: float,
    kinds: Sequence[dict[str, Any]] = KINDS,
    once: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Run `count` jobs on `workers` workers under disturbances, and judge the result.

    Strikes each kind of blow, and goes on until all jobs have ended. Told to strike
    each `once`, it has so many jobs on their way until then, and ends with those.
    Linux only.
    """
    with ExitStack() as stack:
        given = {"lease_seconds": LEASE_SECONDS, "threads": 1}
        services = stack.enter_context(Services(folder, **given))
        disk = stack.enter_context(_disk(folder / "disk"))
        settings = services.settings.model_copy(
            update={"store": str((disk or folder) / "store")}
        )
        slow = faults.SlowStore(folder / "slow", (disk or folder) / "store")
        site = stack.enter_context(
            Fleet(settings, workers, folder / "logs", slow.environment)
        )
        first = [site.submit(kind, n) for n, kind in enumerate(kinds)]
        site.wait_for_end(first, SETTLE_SECONDS)
        expected = [site.pixels(job) for job in first]
        say(f"{len(first)} jobs painted undisturbed")

        began = time.monotonic()
        made: list[str] = []

        def submit() -> None:
            turn = len(made) % len(kinds)
            made.append(site.submit(kinds[turn], turn))

        for _ in range(count):
            submit()
        monkey = Monkey(site, services, slow, disk, random.Random(seed))
        while not monkey.struck_all or not (once or site.count_ended(made) == count):
            while once and len(made) - site.count_ended(made) < count:
                submit()
            # Few blows are struck: each is to hit something.
            if once:
                site.wait_for(monkey.has_prey, SETTLE_SECONDS, monkey.look)
            ended = f"{site.count_ended(made)} of {len(made)} have ended"
            say(f"{time.monotonic() - began:6.0f} s, {ended}: {monkey.strike()}")
            until = time.monotonic() + pause
            while time.monotonic() < until:
                monkey.look()
                time.sleep(TICK)
            if not once and time.monotonic() - began > 60 + 60 * count:
                break
        site.wait_for_end(made, SETTLE_SECONDS, monkey.look)
        # Who wakes up now finds jobs ended that it was at work on.
        until = time.monotonic() + 2 * LEASE_SECONDS
        while monkey.has_plans or time.monotonic() < until:
            monkey.look()
            time.sleep(TICK)
        outcome = Outcome(len(made), monkey.struck)
        outcome.seconds = time.monotonic() - began
        for blow, row in monkey.recovered:
            lost = max(0, blow.step - (row.step_from or 0))
            outcome.lost_steps.append(lost)
            outcome.lost_seconds.append(lost / blow.pace if blow.pace else 0.0)
            outcome.recovery_seconds.append(row.at - blow.at)
        _judge(site, made, expected, outcome)
        if not outcome.is_clean:
            kept = Path(tempfile.mkdtemp(prefix="chaos-"))
            shutil.copytree(folder / "logs", kept, dirs_exist_ok=True)
            say(f"the logs are kept in {kept}")
        return outcome


def _judge(
    site: "Fleet", made: Sequence[str], expected: Sequence[bytes], outcome: Outcome
) -> None:
    ends = Counter(
        line["job"] for line in site.events() if line["event"] == "job_succeeded"
    )
    for number, job in enumerate(made):
        row = site.row(job)
        outcome.states[row.state if row else "vanished"] += 1
        if row is None or row.state == JobState.FAILED:
            outcome.lost.append(job)
        elif not JobState(row.state).is_terminal:
            outcome.stuck.append(job)
        elif site.pixels(job) != expected[number % len(expected)]:
            outcome.differ.append(job)
        elif row.result_key != result_key(job, row.attempt):
            outcome.stale.append(job)
        if ends[job] > 1:
            outcome.doubled.append(job)


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Return the outcome as the rows of a table."""
    found: list[dict[str, Any]] = [
        {"what": "jobs", "value": outcome.jobs},
        {"what": "blows", "value": sum(outcome.blows.values())},
        *_counts(outcome.blows, "  "),
        *_counts(outcome.states),
        {"what": "lost", "value": len(outcome.lost), "goal": 0},
        {"what": "ended twice", "value": len(outcome.doubled), "goal": 0},
        {"what": "ended by a lost attempt", "value": len(outcome.stale), "goal": 0},
        {"what": "stuck", "value": len(outcome.stuck), "goal": 0},
        {"what": "another picture", "value": len(outcome.differ), "goal": 0},
        {"what": "attempts that were ended", "value": len(outcome.lost_steps)},
    ]
    for name, values, goal in (
        ("steps done again", outcome.lost_steps, 25),
        ("seconds of work done again", outcome.lost_seconds, 10),
        ("seconds until it ran again", outcome.recovery_seconds, None),
    ):
        if len(values) > 1:
            cuts = statistics.quantiles(values, n=10)
            found.append({"what": f"{name}, median", "value": cuts[4], "goal": goal})
            found.append({"what": f"{name}, p90", "value": cuts[8]})
    found.append({"what": "seconds in all", "value": outcome.seconds})
    return [{"what": "", "value": None, "goal": None, **row} for row in found]


def _counts(counted: Counter[str], before: str = "") -> list[dict[str, Any]]:
    return [
        {"what": before + name, "value": number}
        for name, number in sorted(counted.items())
    ]


# -- The fleet, as a supervisor of the system keeps it --------------------------------


class Fleet:
    """Workers and a housekeeper, their jobs and pictures."""

    def __init__(
        self, settings: Settings, workers: int, logs: Path, more: Mapping[str, str]
    ) -> None:
        logs.mkdir()
        self._logs = logs
        self.database = Database(settings.database_url)
        self._store: Store = open_store(settings.store_url)
        self._pictures = [_picture(seed) for seed in (1, 2)]
        self.keeper = Part("housekeeper", settings, logs / "housekeeper.log", more=more)
        self.workers = [
            Part("worker", settings, logs / f"worker-{n}.log", more=more)
            for n in range(workers)
        ]

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *error: object) -> None:
        for part in (*self.workers, self.keeper):
            part.end()
        self.database.close()

    def submit(self, kind: dict[str, Any], number: int) -> str:
        """Submit a job of a kind; no bell is rung: the housekeeper wakes workers."""
        shas = [hashlib.sha256(one).hexdigest() for one in self._pictures]
        found = [Inspected(sha, "image/png", 160, 120, 1) for sha in shas]

        def record() -> str:
            jobs.keep_pictures(self.database, found)
            for sha, data in zip(shas, self._pictures, strict=True):
                self._store.put(original_key(sha), data)
            given = complete_settings({"seed": number, **kind}, styles=1)
            return jobs.submit(
                self.database, given, shas[0], shas[1:], max_waiting=10**6
            )

        return _again(record)

    def row(self, job: str) -> Any:
        """Return the job's row, None if it vanished."""

        def read() -> Any:
            with self.database.read() as connection:
                return connection.execute(
                    select(Job.__table__).where(Job.id == job)
                ).one_or_none()

        return _again(read)

    def running(self) -> list[Any]:
        """Return the rows of running jobs."""

        def read() -> Any:
            with self.database.read() as connection:
                return connection.execute(
                    select(Job.__table__).where(Job.state == JobState.RUNNING)
                ).all()

        return list(_again(read))

    def count_ended(self, made: Sequence[str]) -> int:
        """Return how many of these have ended."""

        def read() -> Any:
            with self.database.read() as connection:
                return connection.scalars(
                    select(Job.state).where(Job.id.in_(made))
                ).all()

        return sum(JobState(state).is_terminal for state in _again(read))

    def wait_for_end(
        self,
        made: Sequence[str],
        seconds: float,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Wait until all have ended, or for so long."""
        self.wait_for(lambda: self.count_ended(made) == len(made), seconds, meanwhile)

    def wait_for(
        self,
        condition: Callable[[], bool],
        seconds: float,
        meanwhile: Callable[[], None],
    ) -> None:
        """Wait until it is so, or for so long."""
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            self.revive()
            meanwhile()
            time.sleep(TICK)

    def revive(self) -> None:
        """Start anew what has ended."""
        for part in (*self.workers, self.keeper):
            part.revive()

    def pixels(self, job: str) -> bytes:
        """Return the result's pixels. Raises NotFound."""
        row = self.row(job)
        return Image.open(io.BytesIO(self._store.get(row.result_key))).tobytes()

    def events(self) -> Iterator[dict[str, Any]]:
        """Read all workers' logs."""
        for worker in self.workers:
            yield from worker.events()


# -- The monkey -----------------------------------------------------------------------


@dataclass
class Recovery:
    """When a job ran again, and after which step."""

    at: float
    step_from: int | None


class Monkey:
    """Strikes at random, each kind of blow once before any a second time."""

    def __init__(
        self,
        fleet: Fleet,
        services: Services,
        slow: faults.SlowStore,
        disk: Path | None,
        chance: random.Random,
    ) -> None:
        self._fleet, self._chance = fleet, chance
        self._redis, self._slow = services.settings.redis_url, slow
        self.struck: Counter[str] = Counter()
        self._open: list[Blow] = []
        self.recovered: list[tuple[Blow, Recovery]] = []
        # The time of each undoing and the worker it concerns; None: a server, the disk.
        self._later: list[tuple[float, Part | None, Callable[[], None]]] = []
        long = 3 * LEASE_SECONDS
        self._blows: dict[str, Callable[[], None]] = {
            "child killed": lambda: self._kill(lambda family: family[-1:]),
            "main process killed": lambda: self._kill(lambda family: family[1:2]),
            "launcher killed": lambda: self._kill(lambda family: family[:1]),
            "machine lost": lambda: self._kill(lambda family: family),
            "worker told to stop": self._terminate,
            "child stopped, then woken": lambda: self._stop(slice(-1, None), long),
            "machine stopped, then woken": lambda: self._stop(slice(None), long),
            "hiccup of a child": lambda: self._stop(slice(-1, None), 1),
            "housekeeper killed": lambda: fleet.keeper.process.kill(),
            "redis killed": lambda: services.kill_redis(self._chance.uniform(0, 5)),
            "redis flushed": services.flush_redis,
            "postgresql restarted": lambda: services.restart_postgresql(
                self._chance.uniform(0, 3)
            ),
            "postgresql killed": lambda: services.kill_postgresql(
                self._chance.uniform(0, 3)
            ),
            "redis refuses writes, then not": self._refuse_messages,
            "database read-only, then not": self._refuse_rows,
            "clock set back": self._set_clock_back,
            "store slow, then not": self._slow_store_down,
        }
        if disk is not None:
            self._blows["disk full, then not"] = lambda: self._fill(disk)
        self._deck: list[str] = []

    @property
    def struck_all(self) -> bool:
        """Whether each kind of blow was struck."""
        return len(self.struck) == len(self._blows)

    @property
    def has_plans(self) -> bool:
        """Whether something is still to be woken up."""
        return bool(self._later)

    def strike(self) -> str:
        """Strike the next blow; return what it was."""
        if not self._deck:
            self._deck = self._chance.sample(sorted(self._blows), k=len(self._blows))
        name = self._deck.pop()
        self._blow = name
        self._blows[name]()
        self.struck[name] += 1
        return name

    def look(self) -> None:
        """Start what has died, wake what is to be woken, note what recovered."""
        self._fleet.revive()
        now = time.monotonic()
        due = [call for at, _, call in self._later if at < now]
        self._later = [one for one in self._later if one[0] >= now]
        for call in due:
            call()
        for blow in list(self._open):
            row = self._fleet.row(blow.job)
            if row is None or (row.attempt == blow.attempt and row.state == "running"):
                continue
            if row.attempt > blow.attempt:
                begun = row.checkpoint_step if row.attempt == blow.attempt + 1 else None
                self.recovered.append((blow, Recovery(row.claimed_at, begun)))
                self._open.remove(blow)
            elif JobState(row.state).is_terminal:
                # It had just ended.
                self._open.remove(blow)

    def _note(self, worker: str) -> None:
        """Remember where the worker's job stands."""
        for row in self._fleet.running():
            known = any(
                (one.job, one.attempt) == (row.id, row.attempt) for one in self._open
            )
            if row.worker == worker and row.step is not None and not known:
                self._open.append(
                    Blow(
                        *(self._blow, row.id, row.attempt, row.step),
                        *(row.steps_per_second or 0.0, time.time()),
                    )
                )

    def _kill(
        self, choose: Callable[[list[psutil.Process]], list[psutil.Process]]
    ) -> None:
        family = self._some_family()
        self._note(_name(family))
        for process in choose(family):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _terminate(self) -> None:
        family = self._some_family()
        self._note(_name(family))
        with suppress(psutil.NoSuchProcess, IndexError):
            family[0].terminate()

    def _stop(self, chosen: slice, seconds: float) -> None:
        part = self._some_worker()
        family = part.family()
        if seconds > LEASE_SECONDS:
            self._note(_name(family))
        stopped = family[chosen]
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.suspend()

        def wake() -> None:
            for process in stopped:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

        self._later.append((time.monotonic() + seconds, part, wake))

    def _some_family(self) -> list[psutil.Process]:
        return self._some_worker().family()

    def _some_worker(self) -> Part:
        """Choose one that paints, or one that is awake: who sleeps is to wake up."""
        return self._chance.choice(
            self._painting() or self._awake() or self._fleet.workers
        )

    def has_prey(self) -> bool:
        """Whether a worker that is awake paints."""
        return bool(self._painting())

    def _painting(self) -> list[Part]:
        busy = {row.worker for row in self._fleet.running() if row.step is not None}
        return [one for one in self._awake() if _name(one.family()) in busy]

    def _awake(self) -> list[Part]:
        asleep = {part for _, part, _ in self._later}
        return [one for one in self._fleet.workers if one not in asleep]

    def _refuse_messages(self) -> None:
        faults.answer_with_errors(self._redis)
        self._plan(8, partial(faults.answer_again, self._redis))

    def _refuse_rows(self) -> None:
        database = self._fleet.database
        _again(partial(faults.make_sessions_read_only, database))
        again = partial(faults.let_new_sessions_write, database)
        self._plan(6, partial(_again, again))

    def _set_clock_back(self) -> None:
        """Kill everything, as if its clock had been ahead until now."""
        for part in (*self._fleet.workers, self._fleet.keeper):
            family = part.family()
            self._note(_name(family))
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        times = partial(faults.leave_times_of_a_clock_ahead, self._fleet.database)
        _again(times)

    def _slow_store_down(self) -> None:
        self._slow.slow_down()
        self._plan(12, self._slow.speed_up)

    def _plan(self, seconds: float, call: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, None, call))

    def _fill(self, disk: Path) -> None:
        ballast = disk / "ballast"
        with suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(2**20))
                file.flush()
        # Another such blow may have come meanwhile, and its end too.
        self._plan(8, partial(ballast.unlink, missing_ok=True))


def _name(family: list[psutil.Process]) -> str:
    """Return the name by which the database knows a worker."""
    with suppress(psutil.NoSuchProcess, IndexError, ValueError):
        line = family[1].cmdline()
        return line[line.index("stylequeue_worker.serve") + 1]
    return ""


@contextmanager
def _disk(folder: Path) -> Iterator[Path | None]:
    """A small disk of its own, None where nobody but root may have one."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={STORE_MB}m", "tmpfs"]
    mounted = shutil.which("mount") and not subprocess.call(
        ["mount", *options, str(folder)], stderr=subprocess.DEVNULL
    )
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.check_call(["umount", "--lazy", str(folder)])


def _picture(seed: int) -> bytes:
    noise = random.Random(seed).randbytes(16 * 12 * 3)
    return encode_png(Image.frombytes("RGB", (16, 12), noise).resize((160, 120)))


def _again(call: Callable[[], T]) -> T:
    """Call until the database answers; the monkey may have it."""
    while True:
        try:
            return call()
        except OUTAGE:
            time.sleep(TICK)


if __name__ == "__main__":
    sys.exit(main())
