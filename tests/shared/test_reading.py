from collections.abc import Callable

import pytest

from stylequeue_shared import jobs, reading
from stylequeue_shared.artefacts import snapshot_key
from stylequeue_shared.database import Database
from stylequeue_shared.errors import NotFound
from stylequeue_shared.jobs import Claim, Progress, Result
from tests.shared.submitting import HALF_WAY, claim, picture, submit

MADE = Result(key="jobs/1/1/result.png", width=256, height=192)
NOBODY = "0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"


def keep_snapshot(database: Database, held: Claim, step: int) -> str:
    key = snapshot_key(held.job_id, held.attempt, step)
    jobs.add_snapshot(
        database, held, key, Progress(step, 0.5, 0.25, 8.0, 4.0), (64, 48)
    )
    return key


def test_the_version_grows_with_each_change_and_comes_with_the_state(
    database: Database,
) -> None:
    job_id = submit(database)
    other = submit(database)
    assert reading.version(database, job_id) == (1, "queued")
    held = claim(database)
    assert reading.version(database, job_id) == (2, "running")
    seen = [reading.version(database, job_id)[0]]
    jobs.report(database, held, HALF_WAY, lease_seconds=30)
    seen.append(reading.version(database, job_id)[0])
    keep_snapshot(database, held, 400)
    seen.append(reading.version(database, job_id)[0])
    jobs.succeed(database, held, HALF_WAY, MADE)
    last, state = reading.version(database, job_id)
    assert sorted({*seen, last}) == [*seen, last]
    assert state == "succeeded"
    assert reading.version(database, other) == (1, "queued")


def test_a_job_comes_with_its_own_snapshots_by_step(database: Database) -> None:
    first, second = submit(database), submit(database)
    for held in (claim(database), claim(database)):
        for step in (100, 1000, 50):
            keep_snapshot(database, held, step)
    row, found = reading.job(database, first)
    assert (row.id, row.state, row.settings["steps"]) == (first, "running", 700)
    assert [(shot.job_id, shot.step) for shot in found] == [
        (first, 50),
        (first, 100),
        (first, 1000),
    ]
    assert reading.job(database, second)[0].id == second


def test_a_job_without_snapshots_has_none(database: Database) -> None:
    assert list(reading.job(database, submit(database))[1]) == []


def test_the_pictures_of_a_job_are_found(database: Database) -> None:
    job_id = submit(database, content="cat", styles=("waves", "night", "waves"))
    submit(database, content="dog", styles=("rain",))
    assert reading.content_sha(database, job_id) == picture("cat").sha256
    found = [reading.style_sha(database, job_id, number) for number in range(3)]
    assert found == [picture(name).sha256 for name in ("waves", "night", "waves")]
    assert reading.style_count(database, job_id) == 3
    held = claim(database)
    key = keep_snapshot(database, held, 50)
    assert reading.snapshot_key(database, job_id, 50) == key
    jobs.succeed(database, held, HALF_WAY, MADE)
    assert reading.result_key(database, job_id) == MADE.key


@pytest.mark.parametrize(
    "ask",
    [
        lambda database: reading.snapshot_key(database, NOBODY, 50),
        lambda database: reading.version(database, NOBODY),
        lambda database: reading.job(database, NOBODY),
        lambda database: reading.content_sha(database, NOBODY),
        lambda database: reading.style_sha(database, NOBODY, 0),
        lambda database: reading.result_key(database, NOBODY),
    ],
)
def test_of_a_job_that_is_not_there_nothing_is_found(
    database: Database, ask: Callable[[Database], object]
) -> None:
    submit(database)
    with pytest.raises(NotFound, match=NOBODY):
        ask(database)
    assert reading.style_count(database, NOBODY) == 0


def test_what_a_job_does_not_have_is_refused_by_name(database: Database) -> None:
    job_id = submit(database, styles=("waves",))
    with pytest.raises(NotFound, match=f"no style picture 1 of job {job_id}"):
        reading.style_sha(database, job_id, 1)
    with pytest.raises(NotFound, match=f"no snapshot of step 50 of job {job_id}"):
        reading.snapshot_key(database, job_id, 50)
    with pytest.raises(NotFound, match=f"Job {job_id} has no result"):
        reading.result_key(database, job_id)


def test_a_long_id_is_answered_briefly(database: Database) -> None:
    with pytest.raises(NotFound) as caught:
        reading.version(database, "x" * 10_000)
    assert caught.value.message == f"There is no job {'x' * 36}."
