from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import update

from stylequeue_shared.database import Database, now
from stylequeue_shared.errors import InvalidSetting
from stylequeue_shared.estimates import Speed, estimate, largest_size
from stylequeue_shared.job_settings import JobSettings, complete_settings
from stylequeue_shared.models import Worker
from stylequeue_web.forecasts import forecast

Beat = Callable[..., None]
PHOTO, PAINTING = (1200, 800), (640, 480)


def settings(**given: Any) -> JobSettings:
    return complete_settings({"seed": 1, **given}, styles=1)


LARGE = settings(image_size=2048)


def of(database: Database, job: JobSettings) -> dict[str, Any] | None:
    return forecast(database, job, PHOTO, [PAINTING])


def test_while_no_worker_is_there_everything_is_accepted_without_an_estimate(
    database: Database, beat: Beat
) -> None:
    assert of(database, settings(image_size=8192)) is None
    beat(budget_bytes=1)
    with database.write() as connection:
        connection.execute(update(Worker).values(seen_at=now() - 3600))
    assert of(database, settings(image_size=8192)) is None


def test_the_estimate_is_that_of_the_fastest_worker_that_can_hold_the_job(
    database: Database, beat: Beat
) -> None:
    beat("large", operations_per_second=1e12)
    beat("larger", operations_per_second=2e12, budget_bytes=2 * 10**10, gpu=True)
    beat("largest", operations_per_second=1e11, budget_bytes=10**11)
    beat("fast and small", operations_per_second=1e15, budget_bytes=10**9)
    speed = Speed(2e12, None, 1e11)
    expected = estimate(LARGE, PHOTO, [PAINTING], 2 * 10**10, speed, gpu=True)
    assert expected
    assert of(database, LARGE) == {
        "seconds": round(expected.seconds, 1),
        "memory_bytes": expected.memory_bytes,
        "worker": "larger",
    }


def test_what_none_of_them_can_hold_is_refused_with_the_best_that_one_of_them_can(
    database: Database, beat: Beat
) -> None:
    for name, megabytes in (("a", 1000), ("b", 1500), ("c", 1200)):
        beat(name, budget_bytes=megabytes * 10**6)
    best = largest_size(LARGE, PHOTO, 1500 * 10**6)
    with pytest.raises(
        InvalidSetting, match=rf"found 2048; .* at most {best} fits"
    ) as (refusal):
        of(database, LARGE)
    assert refusal.value.field == "image_size"
    assert of(database, settings(image_size=best))
    with pytest.raises(InvalidSetting):
        of(database, settings(image_size=best + 16))


def test_where_no_size_fits_the_refusal_says_so(database: Database, beat: Beat) -> None:
    beat(budget_bytes=10**6)
    with pytest.raises(InvalidSetting, match=r"found 32; .* no size fits"):
        of(database, settings(image_size=32))


def test_a_worker_that_has_not_told_its_budget_might_hold_anything(
    database: Database, beat: Beat
) -> None:
    beat("small", budget_bytes=10**9)
    beat("unknown", budget_bytes=None, gpu=None, operations_per_second=None)
    assert of(database, LARGE) is None
    beat("unknown", budget_bytes=None)
    found = of(database, LARGE)
    assert found
    assert found["worker"] == "unknown"
