"""A runner at work on real SQLite and a real folder, with a small engine."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import Image
from sqlalchemy import select, update

from stylequeue_shared import images, jobs
from stylequeue_shared.artefacts import states_prefix
from stylequeue_shared.database import now
from stylequeue_shared.errors import DiskFull, MachineError
from stylequeue_shared.job_settings import JobSettings
from stylequeue_shared.models import Base, Job, Snapshot
from stylequeue_shared.plans import Plan
from stylequeue_shared.settings import Settings
from stylequeue_shared.store_folder import FolderStore
from stylequeue_worker.draining import Draining
from stylequeue_worker.engine.state import State
from stylequeue_worker.engine.transfer import Step
from stylequeue_worker.faults import Faults
from stylequeue_worker.runner import Runner
from tests.shared.outages import Flaky
from tests.worker.submitting import submit

LEASE = 2.0


class Stood:
    """Where the fake engine stands: a picture, and a number to each step."""

    def __init__(self, number: int, picture: torch.Tensor) -> None:
        tensors = {f"pair-{one}": torch.tensor(one) for one in range(number)}
        self._state = State(number, {"picture": picture, **tensors}, PLAN)

    def state(self) -> State:
        return self._state


PLAN = Plan(64, 1, half=False, history=5)


class Fake:
    """An engine that paints grey, and does as it is told at chosen steps."""

    made_with: Mapping[str, Any] = {"stylequeue": "1.2", "weights": "abc", "threads": 2}
    budget: int | None = 10**9
    on_gpu = False

    def __init__(self) -> None:
        self.at: dict[int, Callable[[], object]] = {}
        self.step_seconds = 0.0
        self.painted: list[int] = []
        self.recovered = 0

    def paint(
        self,
        content: Image.Image,
        styles: Sequence[Image.Image],
        settings: JobSettings,
        budget: int | None = None,
        state: State | None = None,
        at_border: Callable[[], None] = lambda: None,
    ) -> Iterator[Step]:
        for number in range(state.step + 1 if state else 1, settings.steps + 1):
            self.at.get(number, lambda: None)()
            until = time.monotonic() + self.step_seconds
            at_border()
            while time.monotonic() < until:
                time.sleep(min(0.01, self.step_seconds))
                at_border()
            self.painted.append(number)
            picture = torch.full((1, 3, 48, 64), 0.5)
            yield Step(
                *(number, 10.0 / number, 1.0 / number, picture),
                stop_reason="completed" if number == settings.steps else None,
                run=Stood(number, picture),
            )

    def recover(self) -> None:
        self.recovered += 1


class Refusing(FolderStore):
    """A real store that refuses some writes, and may be away when it is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.refuses: Callable[[str], bool] = lambda key: False
        self.is_away: Callable[[str], bool] = lambda key: False
        self.pause = 0.0

    def open(self, key: str) -> BinaryIO:
        if self.is_away(key):
            raise MachineError("the store does not answer")
        return super().open(key)

    def local(self, key: str) -> AbstractContextManager[Path]:
        if self.is_away(key):
            raise MachineError("the store does not answer")
        return super().local(key)

    def put(self, key: str, data: bytes | Path) -> None:
        time.sleep(self.pause)
        if self.refuses(key):
            raise DiskFull("there is no room left for pictures")
        super().put(key, data)


class Bench:
    """A runner on real SQLite and a real folder, with the fake engine."""

    def __init__(self, home: Path) -> None:
        self.database = Flaky(f"sqlite:///{home / 'test.db'}")
        Base.metadata.create_all(self.database.engine)
        self.store = Refusing(home / "store")
        self.engine = Fake()
        self.draining, self.faults = Draining(), Faults()
        self.home = home
        self.runner = self._start()

    def _start(self) -> Runner:
        return Runner(
            Settings(home=self.home, lease_seconds=LEASE),
            self.database,
            self.store,
            self.engine,
            "the-worker",
            self.draining,
            self.faults,
        )

    def submit(self, **settings: Any) -> str:
        return submit(self.database, self.store, **settings)

    def start_again(self) -> None:
        """Have a new child in the place of one that ended."""
        self.draining = Draining()
        self.engine.at.clear()
        self.runner = self._start()

    def run_until_it_fails(self, job_id: str) -> None:
        """Run a job as often as one may fail by the machine's fault."""
        for number in range(jobs.MAX_FAULTS):
            row = self.row(job_id)
            assert (row.state, row.attempt) == ("queued", number)
            assert self.runner.run_next()

    def states(self, job_id: str) -> Iterator[str]:
        return self.store.keys(states_prefix(job_id))

    def row(self, job_id: str) -> Any:
        with self.database.read() as connection:
            return connection.execute(
                select(Job.__table__).where(Job.id == job_id)
            ).one()

    def snapshots(self, job_id: str) -> list[Any]:
        with self.database.read() as connection:
            return list(
                connection.execute(
                    select(Snapshot.__table__)
                    .where(Snapshot.job_id == job_id)
                    .order_by(Snapshot.step)
                )
            )


def decode_here(path: Path, *, field: str, keep_alpha: bool = False) -> Image.Image:
    """Decode as a decoder's process does, but in this one: starting many takes long."""
    return images.decode(path, keep_alpha=keep_alpha)


def give_away(bench: Bench, job: str) -> None:
    """Do as the housekeeper does after a lease ran out, and claim it elsewhere."""
    with bench.database.write() as connection:
        connection.execute(
            update(Job).where(Job.id == job).values(lease_until=now() - 1)
        )
        connection.execute(
            update(Job)
            .where(Job.id == job)
            .values(attempt=2, worker="another", lease_until=now() + 60)
        )
