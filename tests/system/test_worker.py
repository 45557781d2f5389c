"""The real worker: real Celery processes, a real Valkey, real signals."""

import io
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image
from redis import Redis

from stylequeue_shared import jobs, registry
from stylequeue_shared.housekeeper.housekeeper import Housekeeper
from stylequeue_shared.queue import QUEUE, worker_celery
from stylequeue_shared.restarts import GAVE_UP
from stylequeue_shared.settings import Settings
from tests.system.conftest import running_installation
from tests.system.running import PATIENCE, Site, is_gone
from tests.worker.submitting import ENDLESS, submit, submit_bytes


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A worker for the tests that leave it running."""
    home = tmp_path_factory.mktemp("worker") / "home"
    with running_installation(home) as settings:
        site = Site(settings)
        yield site
        site.close()


@pytest.fixture
def own(installation: Settings) -> Iterator[Site]:
    """A worker for one test, which may end it."""
    site = Site(installation)
    yield site
    site.close()


def test_a_job_is_painted_by_the_real_worker(shared: Site) -> None:
    row = shared.ended(shared.submit())
    assert (row.state, row.attempt, row.step) == ("succeeded", 1, 4)
    picture = Image.open(io.BytesIO(shared.store.get(row.result_key)))
    assert picture.size == (64, 48)
    assert row.made_with["device"].startswith("CPU")
    (worker,) = shared.workers()
    assert worker.memory_bytes > worker.budget_bytes > 0
    assert min(worker.operations_per_second, worker.bytes_per_second) > 1e6
    assert '"event": "no_gpu_running_on_cpu"' in shared.log.read_text()


def test_the_parent_never_imports_torch(shared: Site) -> None:
    shared.ended(shared.submit())
    main, child = shared.processes()
    for process in (psutil.Process(shared.launcher.pid), main):
        assert not loads_torch(process)
    assert loads_torch(child)


def loads_torch(process: psutil.Process) -> bool:
    maps = Path(f"/proc/{process.pid}/maps")
    return "libtorch" in maps.read_text()


def test_a_running_job_is_cancelled(shared: Site) -> None:
    job = shared.submit(**ENDLESS)
    shared.painting(job)
    begun = time.monotonic()
    jobs.request(shared.database, job, "cancel")
    assert shared.ended(job).state == "cancelled"
    assert time.monotonic() - begun < 10


def test_a_ping_is_answered_while_a_job_runs(shared: Site) -> None:
    job = shared.submit(**ENDLESS)
    shared.painting(job)
    assert_answers(shared)
    assert shared.row(job).state == "running"
    jobs.request(shared.database, job, "cancel")
    shared.ended(job)


def assert_answers(site: Site) -> None:
    app = worker_celery(site.settings)
    try:
        (answer,) = app.control.ping(timeout=20, limit=1)
    finally:
        app.close()
    assert list(answer.values()) == [{"ok": "pong"}]


def test_a_job_that_fails_leaves_the_worker_serving_the_next(shared: Site) -> None:
    _, child = shared.processes()
    broken = submit_bytes(shared.database, shared.store, b"no picture", b"none")
    shared.bell.ring(broken)
    good = shared.submit()
    assert shared.ended(broken).error_code == "invalid_picture"
    assert shared.ended(good).state == "succeeded"
    assert shared.processes()[1] == child


def test_doubled_and_foreign_messages_run_nothing_twice(shared: Site) -> None:
    job = shared.submit()
    for _ in range(5):
        shared.bell.ring(job)
    shared.bell.ring("no such job")
    assert shared.ended(job).state == "succeeded"
    shared.wait_for(lambda: shared.bell.waiting() == 0)
    last = shared.submit()
    shared.ended(last)
    assert shared.row(job).attempt == 1
    claims = [line for line in shared.events() if line["event"] == "job_claimed"]
    assert [line["job"] for line in claims].count(job) == 1


def test_messages_that_come_often_late_and_in_disorder_run_each_job_once(
    shared: Site,
) -> None:
    before = len(shared.events())
    blocking, ended = shared.submit(**ENDLESS), shared.submit()
    shared.painting(blocking)
    jobs.request(shared.database, ended, "cancel")
    first, second = (submit(shared.database, shared.store) for _ in range(2))
    for _ in range(10):
        for job in (second, first, ended, "no such job"):
            assert shared.bell.ring(job)
    queue = shared.bell._redis
    messages = queue.lrange(QUEUE, 0, -1)
    assert len(messages) == 41
    jobs.request(shared.database, blocking, "cancel")
    for job in (first, second):
        assert shared.ended(job).state == "succeeded"
    shared.wait_for(lambda: shared.bell.waiting() == 0)
    # The very same ones once more, as if they had been under way for hours.
    queue.lpush(QUEUE, *messages)
    shared.wait_for(lambda: shared.bell.waiting() == 0)
    last = shared.submit()
    assert shared.ended(last).state == "succeeded"

    assert shared.bell.waiting() == 0
    assert [shared.row(job).attempt for job in (first, second, ended)] == [1, 1, 0]
    assert shared.row(first).started_at < shared.row(second).started_at
    lines = shared.events()[before:]
    claims = [line["job"] for line in lines if line["event"] == "job_claimed"]
    assert claims == [blocking, first, second, last]
    assert {line["level"] for line in lines} == {"info"}


def test_messages_wait_in_the_queue_while_a_job_runs(shared: Site) -> None:
    running = shared.submit(**ENDLESS)
    shared.painting(running)
    waiting = shared.submit()
    time.sleep(1)
    # Not reserved by the busy worker: another one could take it.
    assert shared.bell.waiting() == 1
    jobs.request(shared.database, running, "cancel")
    assert shared.ended(waiting).state == "succeeded"


def test_sigterm_hands_the_job_back_and_leaves_nothing(own: Site) -> None:
    job = own.submit(**ENDLESS)
    own.painting(job)
    main, child = own.processes()
    begun = time.monotonic()
    own.launcher.terminate()
    assert own.launcher.wait(30) == 0
    assert time.monotonic() - begun < 15
    row = own.row(job)
    assert (row.state, row.worker) == ("queued", None)
    assert row.checkpoint_step >= 1
    assert is_gone(main)
    assert is_gone(child)
    assert own.workers() == []


def test_a_killed_child_loses_neither_the_job_nor_the_worker(own: Site) -> None:
    job = own.submit(**ENDLESS)
    own.painting(job)
    main, child = own.processes()
    child.kill()
    own.wait_for(lambda: is_gone(child))
    # The child that takes its place gives the job back; its lease would do so later.
    own.wait_for(lambda: own.row(job).state == "queued")
    row = own.row(job)
    assert (row.losses, row.faults, row.lease_until) == (1, 0, None)
    assert any(line["event"] == "job_of_a_lost_child" for line in own.events())
    jobs.request(own.database, job, "cancel")
    assert own.ended(own.submit()).state == "succeeded"
    assert own.processes()[0] == main
    assert own.processes()[1] != child


def test_a_job_that_is_disturbed_in_every_way_ends_with_the_same_picture(
    own: Site,
) -> None:
    given = {"steps": 700, "seed": 5, "snapshot_every": 350}
    undisturbed = own.ended(own.submit(**given))

    job = own.submit(**given)
    own.painting(job)
    jobs.request(own.database, job, "pause")
    own.wait_for(lambda: own.row(job).state == "paused")
    paused_at = own.row(job).checkpoint_step
    assert 1 <= paused_at < 700

    jobs.resume(own.database, job, max_waiting=1000)
    own.bell.ring(job)
    own.wait_for(lambda: own.row(job).step > paused_at)
    own.processes()[1].kill()
    own.wait_for(lambda: own.row(job).state == "queued")
    own.bell.ring(job)
    own.wait_for(lambda: own.row(job).attempt == 3 and own.row(job).step > paused_at)

    own.launcher.terminate()
    assert own.launcher.wait(30) == 0
    stopped_at = own.row(job).checkpoint_step
    assert paused_at < stopped_at < 700
    own.launcher = own.start()
    own.bell.ring(job)
    row = own.ended(job)
    assert (row.state, row.attempt, row.losses) == ("succeeded", 4, 0)
    assert (row.style_loss, row.content_loss) == (
        *(undisturbed.style_loss, undisturbed.content_loss),
    )
    first, second = (
        Image.open(io.BytesIO(own.store.get(one.result_key))).tobytes()
        for one in (undisturbed, row)
    )
    assert first == second
    # What was done once was not done again.
    claims = [line for line in own.events() if line["event"] == "checkpoint_loaded"]
    assert [line["step"] for line in claims] == [paused_at, paused_at, stopped_at]


def test_a_wedged_worker_loses_its_job_and_is_replaced(own: Site) -> None:
    job = own.submit(**ENDLESS)
    own.painting(job)
    main, child = own.processes()
    child.suspend()
    own.wait_for(lambda: jobs.return_lost(own.database) == [job])
    # Another attempt, as if by another worker; then the first one wakes up.
    held = jobs.claim(own.database, "another", lease_seconds=60)
    assert held is not None
    assert held.job_id == job
    before = own.row(job)
    child.resume()
    own.wait_for(lambda: any(line["event"] == "job_lost" for line in own.events()))
    assert own.row(job) == before
    jobs.request(own.database, job, "cancel")
    jobs.hand_back(own.database, held)
    assert own.ended(own.submit()).state == "succeeded"
    assert own.processes() == (main, child)


def test_a_worker_that_hangs_still_stops_when_it_is_told_to(own: Site) -> None:
    job = own.submit(**ENDLESS)
    own.painting(job)
    _, child = own.processes()
    child.suspend()
    own.launcher.terminate()
    assert own.launcher.wait(30) == 0
    own.wait_for(lambda: is_gone(child), 20)
    # It was killed, so its job need not wait for the lease.
    assert own.row(job).state == "queued"


def test_a_flushed_broker_loses_no_job(own: Site) -> None:
    first = own.submit(**ENDLESS)
    own.painting(first)
    second = own.submit()
    with Redis.from_url(own.settings.redis_url.replace("redis+socket", "unix")) as all_:
        all_.flushall()
    assert own.bell.waiting() == 0
    jobs.request(own.database, first, "cancel")
    keeper = Housekeeper(own.database, own.store, own.bell, own.settings)
    own.wait_for(lambda: keeper.round() and own.row(second).state == "succeeded")
    assert own.row(second).attempt == 1


def test_a_killed_main_process_is_replaced_and_its_job_goes_on(own: Site) -> None:
    job = own.submit(**ENDLESS)
    own.painting(job)
    name = own.row(job).worker
    main, child = own.processes()
    main.kill()
    # Nothing here looks for leases that ran out: the supervisor itself returns it.
    own.wait_for(lambda: own.row(job).state == "queued")
    assert own.row(job).losses == 1
    own.wait_for(lambda: is_gone(main) and is_gone(child))
    own.bell.ring(job)
    own.wait_for(lambda: own.row(job).attempt == 2)
    (worker,) = own.workers()
    assert worker.name == own.row(job).worker != name
    jobs.request(own.database, job, "cancel")
    assert own.ended(job).state == "cancelled"
    died = [line for line in own.events() if line["event"] == "worker_died"]
    assert [(line["worker"], line["how"]) for line in died] == [
        (name, "was ended by SIGKILL")
    ]
    assert own.launcher.poll() is None
    own.launcher.terminate()
    assert own.launcher.wait(30) == 0


def test_workers_of_a_killed_launcher_hand_back_and_end(own: Site) -> None:
    job = own.submit(**ENDLESS)
    own.painting(job)
    main, child = own.processes()
    own.launcher.kill()
    own.launcher.wait()
    own.wait_for(lambda: is_gone(main) and is_gone(child), 30)
    assert own.row(job).state == "queued"


def test_a_child_whose_main_process_was_killed_ends_by_itself(own: Site) -> None:
    job = own.submit(**ENDLESS)
    own.painting(job)
    main, child = own.processes()
    # Together, so that the launcher cannot do it.
    own.launcher.kill()
    main.kill()
    own.launcher.wait()
    own.wait_for(lambda: is_gone(child), 30)
    own.wait_for(lambda: jobs.return_lost(own.database) == [job])


def test_a_worker_that_can_run_nothing_ends_and_says_why(
    installation: Settings,
) -> None:
    bad = installation.model_copy(update={"weights": "/nowhere/vgg.safetensors"})
    settings = Settings(
        **bad.model_dump(include={"home", "redis", "device", "weights"})
    )
    site = Site(settings)
    try:
        # A wrong setting is not tried again and again.
        assert site.launcher.wait(PATIENCE) == GAVE_UP
        assert "STYLEQUEUE_WEIGHTS" in site.log.read_text()
        events = [line["event"] for line in site.events()]
        assert events.count("worker_started") == 1
        assert events[-1] == "all_workers_given_up"
    finally:
        site.bell.close()
        site.database.close()


def test_a_job_outlives_a_restart_of_the_broker(tmp_path: Path) -> None:
    from stylequeue_shared.embedded import EmbeddedRedis

    home = tmp_path / "home"
    with running_installation(home) as settings:
        pass
    valkey = EmbeddedRedis(home)
    server = valkey.start()
    site = Site(settings)
    try:
        job = site.submit(**ENDLESS)
        site.painting(job)
        server.kill()
        server.wait()
        step = site.row(job).step
        time.sleep(2)
        server = valkey.start()
        site.wait_for(lambda: site.row(job).step > step)
        assert site.row(job).attempt == 1
        jobs.request(site.database, job, "cancel")
        site.ended(job)
        assert site.ended(site.submit()).state == "succeeded"
        # And once more while nothing runs; what is submitted meanwhile waits.
        server.kill()
        server.wait()
        meanwhile = submit(site.database, site.store)
        assert not site.bell.ring(meanwhile)
        server = valkey.start()
        keeper = Housekeeper(site.database, site.store, site.bell, settings)
        site.wait_for(
            lambda: keeper.round() and site.row(meanwhile).state == "succeeded"
        )
    finally:
        site.close()
        valkey.stop(server)


@pytest.mark.parametrize("how", ["finish", "hand_back"])
def test_a_worker_that_takes_no_more_leaves_messages_to_others(
    own: Site, how: registry.Drain
) -> None:
    own.wait_for(lambda: bool(own.workers()))
    (worker,) = own.workers()
    registry.drain(own.database, worker.name, how)
    own.wait_for(lambda: own.workers()[0].refuses is not None)
    drained = own.launcher
    try:
        # The first message tells it to hold still; the housekeeper sends another.
        good = own.submit()
        for _ in range(3):
            own.bell.ring(good)
        time.sleep(1)
        # It is there, and takes none of them.
        assert_answers(own)
        assert own.bell.waiting() == 3
        assert own.row(good).state == "queued"

        own.launcher = own.start()
        assert own.ended(good).state == "succeeded"
        own.wait_for(lambda: own.bell.waiting() == 0)
    finally:
        drained.terminate()
        assert drained.wait(30) == 0
