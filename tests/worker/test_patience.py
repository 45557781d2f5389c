import time

import pytest

from stylequeue_shared import jobs
from stylequeue_worker import patience
from tests.worker.workbench import Bench


def test_a_job_is_cancelled_while_the_store_is_away(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = bench.submit(steps=3)

    def is_away(key: str) -> bool:
        jobs.request(bench.database, job, "cancel")
        return True

    monkeypatch.setattr(patience, "STORE_PAUSES", (30.0,))
    bench.store.is_away = is_away
    begun = time.monotonic()
    bench.runner.run_next()
    assert bench.row(job).state == "cancelled"
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("of", ["pictures", "states"])
def test_a_store_that_is_away_for_a_moment_costs_a_job_nothing(
    bench: Bench, of: str
) -> None:
    job = bench.submit(steps=6, snapshot_every=6)
    bench.engine.at[3] = bench.draining.start
    bench.runner.run_next()
    assert bench.row(job).checkpoint_step == 2
    bench.start_again()
    away = iter([True, True])
    bench.store.is_away = lambda key: of in key and next(away, False)
    bench.runner.run_next()
    row = bench.row(job)
    assert (row.state, row.faults) == ("succeeded", 0)
    assert next(away, "asked") == "asked"
    assert bench.engine.painted == [1, 2, 3, 4, 5, 6]


def test_a_worker_that_shuts_down_while_the_store_is_away_hands_its_job_back(
    bench: Bench,
) -> None:
    job = bench.submit()

    def is_away(key: str) -> bool:
        bench.draining.start()
        return True

    bench.store.is_away = is_away
    bench.runner.run_next()
    row = bench.row(job)
    assert (row.state, row.worker, row.faults) == ("queued", None, 0)


def test_a_store_that_stays_away_is_the_machines_fault(bench: Bench) -> None:
    job = bench.submit()
    bench.store.is_away = lambda key: True
    bench.run_until_it_fails(job)
    row = bench.row(job)
    assert (row.state, row.error_fault) == ("failed", "machine")
