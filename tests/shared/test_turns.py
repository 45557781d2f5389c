import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Row, event, select, update

from stylequeue_shared import foresight, jobs, reading, registry
from stylequeue_shared.database import Database, now
from stylequeue_shared.errors import Conflict, NotFound
from stylequeue_shared.jobs import Claim, Result
from stylequeue_shared.models import Job, Owner
from stylequeue_shared.queue_simulation import Queue, Waiting
from stylequeue_shared.turns import PRIORITIES
from tests.shared.submitting import HALF_WAY, claim, row, run_out, submit

DAY = 86_400
NOBODY = "0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"


def claimed(database: Database, count: int) -> list[str]:
    return [claim(database, f"w{number}").job_id for number in range(count)]


def pass_by(database: Database, job_id: str, seconds: float) -> None:
    """Let a running job have been claimed so long ago."""
    with database.write() as connection:
        here = update(Job).where(Job.id == job_id)
        connection.execute(here.values(claimed_at=now() - seconds))


def age(database: Database, job_id: str, seconds: float) -> None:
    """Let a waiting job have been submitted so much earlier."""
    with database.write() as connection:
        here = update(Job).where(Job.id == job_id)
        connection.execute(here.values(turn=Job.turn - seconds))


def succeed(database: Database, held: Claim, seconds: float) -> None:
    pass_by(database, held.job_id, seconds)
    jobs.succeed(database, held, HALF_WAY, Result("jobs/1/1/result.png", 64, 48))


def owner(database: Database, name: str) -> Row[float, float]:
    """Return the worker-seconds of an owner: as they were counted last, and all."""
    with database.read() as connection:
        wanted = select(Owner.used_seconds, Owner.total_seconds)
        return connection.execute(wanted.where(Owner.name == name)).one()


def foreseen(database: Database) -> list[str]:
    return [one.id for one in reading.queue(database)]


def test_jobs_of_a_higher_class_come_first(database: Database) -> None:
    low, normal, high = (
        submit(database, priority=name) for name in reversed(PRIORITIES)
    )
    turns = [high, normal, low]
    assert foreseen(database) == turns
    assert claimed(database, 3) == turns


def test_a_job_that_waited_longer_than_the_head_start_is_before_a_higher_class(
    database: Database,
) -> None:
    normal, young = submit(database), submit(database)
    age(database, normal, DAY + 60)
    age(database, young, DAY - 60)
    high = submit(database, priority="high")
    turns = [normal, high, young]
    assert foreseen(database) == turns
    assert claimed(database, 3) == turns


def test_many_jobs_of_one_owner_delay_another_s_by_no_more_than_those_that_run(
    database: Database,
) -> None:
    many = [submit(database, owner="ann") for _ in range(50)]
    running = claimed(database, 4)
    assert running == many[:4]
    single = submit(database, owner="bob")
    assert foreseen(database)[0] == single
    assert claim(database).job_id == single
    assert claim(database).job_id == many[4]


def test_owners_share_by_what_they_had_of_the_workers_not_by_jobs(
    database: Database,
) -> None:
    for name, seconds in (("ann", 600), ("bob", 10), ("bob", 20)):
        submit(database, owner=name)
        succeed(database, claim(database), seconds)
    ann, bob = submit(database, owner="ann"), submit(database, owner="bob")
    assert foreseen(database) == [bob, ann]
    assert claim(database).job_id == bob


def test_what_a_job_takes_counts_while_it_runs(database: Database) -> None:
    long, _ = submit(database, owner="ann"), submit(database, owner="bob")
    claimed(database, 2)
    pass_by(database, long, 500)
    submit(database, owner="ann")
    bob = submit(database, owner="bob")
    assert claim(database).job_id == bob


def test_a_job_counts_from_its_claim_with_all_that_it_is_expected_to_take(
    database: Database,
) -> None:
    # Six workers that are free at once: else they would take turns, job by job.
    long = [submit(database, owner="ann", estimate={"seconds": 90}) for _ in range(3)]
    short = [submit(database, owner="bob", estimate={"seconds": 40}) for _ in range(6)]
    turns = [long[0], *short[:3], long[1], *short[3:5], long[2], short[5]]
    assert foreseen(database) == turns
    found = claimed(database, 6)
    assert found == turns[:6]
    # What was foretold of it is better than what was estimated at its submission.
    ends = row(database, long[1])
    assert ends.eta_finish - ends.claimed_at == pytest.approx(90, abs=2)


def test_a_job_that_was_foretold_counts_as_long_as_that_said(
    database: Database,
) -> None:
    ann = submit(database, owner="ann", estimate={"seconds": 10})
    registry.beat(database, registry.Identity("w1", "here", "CPU", None, pace=5.0))
    jobs.foretell(database, foresight.foretell(database))
    claim(database)
    submit(database, owner="bob", estimate={"seconds": 40})
    claim(database, "w2")
    submit(database, owner="ann")
    bob = submit(database, owner="bob")
    found = row(database, ann)
    assert found.eta_finish - found.claimed_at == pytest.approx(50, abs=2)
    assert claim(database, "w3").job_id == bob


def test_what_an_owner_had_counts_half_after_an_hour(database: Database) -> None:
    submit(database, owner="ann")
    succeed(database, claim(database), 1000)
    with database.write() as connection:
        connection.execute(update(Owner).values(used_at=now() - 3600))
    submit(database, owner="bob")
    succeed(database, claim(database), 600)
    ann = submit(database, owner="ann")
    submit(database, owner="bob")
    held = claim(database)
    assert held.job_id == ann
    succeed(database, held, 100)
    found = owner(database, "ann")
    assert found.used_seconds == pytest.approx(600, abs=5)
    assert found.total_seconds == pytest.approx(1100, abs=5)


def test_an_attempt_is_charged_however_it_ends(database: Database) -> None:
    job_id = submit(database, owner="ann")
    for number, leave in enumerate((jobs.hand_back, jobs.send_away), start=1):
        held = claim(database)
        pass_by(database, job_id, 100)
        leave(database, held)
        assert owner(database, "ann").total_seconds == pytest.approx(
            100 * number, abs=5
        )
    claim(database)
    pass_by(database, job_id, 100)
    run_out(database, job_id)
    assert jobs.return_lost(database) == [job_id]
    held = claim(database)
    pass_by(database, job_id, 100)
    jobs.fail(database, held, Conflict("a failure"))
    assert owner(database, "ann").total_seconds == pytest.approx(400, abs=5)


def test_a_job_that_ran_is_before_all_that_never_did(database: Database) -> None:
    ran = submit(database, priority="low", owner="ann")
    held = claim(database)
    succeed(database, claimed_of(database, "ann"), 500)
    submit(database, priority="high", owner="bob")
    jobs.hand_back(database, held)
    assert foreseen(database)[0] == ran
    assert claim(database).job_id == ran


def claimed_of(database: Database, name: str) -> Claim:
    submit(database, owner=name)
    return claim(database, "another")


def test_a_job_put_in_front_is_next_before_one_put_there_earlier(
    database: Database,
) -> None:
    ran = submit(database)
    jobs.hand_back(database, claim(database))
    first, second, third = (submit(database, priority="low") for _ in range(3))
    jobs.put_in_front(database, second)
    jobs.put_in_front(database, third)
    turns = [third, second, ran, first]
    assert foreseen(database) == turns
    assert claimed(database, 4) == turns


def test_a_job_put_in_front_is_next_whatever_its_owner_had(database: Database) -> None:
    submit(database, owner="busy")
    succeed(database, claim(database), 1000)
    ran = submit(database, owner="idle")
    jobs.hand_back(database, claim(database))
    front = submit(database, owner="busy")
    jobs.put_in_front(database, front)
    assert foreseen(database) == [front, ran]
    assert claimed(database, 2) == [front, ran]


def test_a_waiting_job_is_moved_to_another_class_and_back(database: Database) -> None:
    first, second = submit(database), submit(database)
    version = row(database, second).version
    jobs.prioritise(database, second, "high")
    assert row(database, second).version > version
    assert foreseen(database) == [second, first]
    jobs.prioritise(database, second, "normal")
    assert foreseen(database) == [first, second]
    jobs.put_in_front(database, second)
    jobs.prioritise(database, second, "low")
    assert foreseen(database) == [first, second]


def test_a_job_that_ran_stays_ahead_whatever_its_class(database: Database) -> None:
    ran = submit(database)
    jobs.hand_back(database, claim(database))
    jobs.prioritise(database, ran, "low")
    high = submit(database, priority="high")
    assert row(database, ran).priority == "low"
    assert claimed(database, 2) == [ran, high]


def test_only_a_waiting_job_has_a_turn_to_change(database: Database) -> None:
    job_id = submit(database)
    claim(database)
    for change in (
        lambda one: jobs.put_in_front(database, one),
        lambda one: jobs.prioritise(database, one, "high"),
    ):
        with pytest.raises(Conflict, match="running"):
            change(job_id)
        with pytest.raises(NotFound):
            change(NOBODY)


def test_a_retry_has_its_owner_but_no_priority(database: Database) -> None:
    first = submit(database, priority="high", owner="ann")
    jobs.request(database, first, "cancel")
    again = row(database, jobs.retry(database, first, max_waiting=10))
    assert (again.owner, again.priority) == ("ann", "normal")


def test_a_paused_queue_gives_out_no_job_until_it_goes_on(database: Database) -> None:
    job_id = submit(database)
    for _ in range(2):
        jobs.pause_queue(database, paused=True)
    assert jobs.claim(database, "w1", lease_seconds=30) is None
    for _ in range(2):
        jobs.pause_queue(database, paused=False)
    assert claim(database).job_id == job_id


def test_a_drained_worker_gets_no_job_and_others_do(database: Database) -> None:
    for name in ("w1", "w2"):
        identity = registry.Identity(name, "castle", "CPU", None)
        assert registry.beat(database, identity) is None
    registry.drain(database, "w1", "finish")
    assert registry.beat(database, registry.Identity("w1", "castle", "CPU", None)) == (
        "finish"
    )
    job_id = submit(database)
    assert jobs.claim(database, "w1", lease_seconds=30) is None
    assert claim(database, "w2").job_id == job_id
    with pytest.raises(NotFound, match="w3"):
        registry.drain(database, "w3", "finish")


@pytest.mark.parametrize("seed", range(4))
def test_the_order_foreseen_is_that_of_the_claims(
    database: Database, seed: int
) -> None:
    chance = random.Random(seed)
    owners = ("ann", "bob", "cleo", "")
    for name in owners:
        submit(database, owner=name)
        succeed(database, claim(database), chance.uniform(0, 900))
    for _ in range(30):
        job_id = submit(
            database,
            owner=chance.choice(owners),
            priority=chance.choice(PRIORITIES),
            estimate={"seconds": chance.uniform(5, 600)},
        )
        age(database, job_id, chance.uniform(0, 3 * DAY))
    jobs.put_in_front(database, job_id)
    expected = [(one.id, one.seconds) for one in reading.queue(database)]
    for job_id, seconds in expected:
        held = claim(database)
        assert held.job_id == job_id
        succeed(database, held, seconds)


def test_a_claim_looks_into_the_index_and_never_at_all_that_waits(
    sqlite: Path, tmp_path: Path
) -> None:
    # PostgreSQL chooses by statistics; bench.fleet measures what it takes.
    database = Database(f"sqlite:///{shutil.copy(sqlite, tmp_path)}")
    statements: list[Any] = []
    event.listen(
        database.engine,
        "before_cursor_execute",
        lambda *given: statements.append(given[2:4]),
    )
    submit(database)
    statements.clear()
    claim(database)
    (turn,) = [one for one in statements if "row_number" in one[0]]
    with database.read() as connection:
        found = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {turn[0]}", turn[1])
        plan = [line.detail for line in found]
    looks = [line for line in plan if "jobs" in line]
    assert any("jobs_by_line" in line for line in looks)
    assert not [line for line in looks if line.startswith("SCAN jobs")]
    database.close()


def test_the_queue_s_end_is_told(database: Database) -> None:
    queue = Queue([Waiting("a", "2", 1.0, 60.0)], {})
    one = queue.take()
    assert one is not None
    assert (one.id, queue.take()) == ("a", None)
