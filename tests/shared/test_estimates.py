from dataclasses import replace
from typing import Any

import pytest

from stylequeue_shared import estimates
from stylequeue_shared.estimates import (
    HISTORY_BYTES,
    PRECONDITIONER_BYTES,
    RE_READ,
    STEP_SECONDS,
    UPDATE_BYTES,
    Estimate,
    Speed,
    about,
    estimate,
    fits,
    largest_size,
    operations,
    reading_operations,
)
from stylequeue_shared.job_settings import JobSettings, complete_settings
from stylequeue_shared.plans import HISTORY_AT_MOST, MB, Plan, peak_bytes, plan
from stylequeue_shared.sizes import fit

PHOTO, PAINTING = (3000, 2000), (800, 600)
CPU = Speed(2.5e11, 5e11, 2e10)
# One of these alone takes time.
COMPUTES = Speed(1e9, 1e9, 1e30)
READS = Speed(1e30, 1e30, 1e9)


def settings(**given: Any) -> JobSettings:
    return complete_settings({"seed": 1, "snapshot_every": 100, **given}, styles=1)


def on(
    job: JobSettings, speed: Speed = CPU, budget: int | None = None, **more: Any
) -> Estimate:
    found = estimate(job, PHOTO, [PAINTING], budget, speed, **more)
    assert found is not None
    return found


def seconds(job: JobSettings, speed: Speed) -> float:
    """Return the seconds that `speed` has to do with."""
    return on(job, speed).seconds - job.steps * STEP_SECONDS


# -- Operations -----------------------------------------------------------------------


def test_the_operations_of_a_shallow_evaluation_are_those_counted_by_hand() -> None:
    job = settings(content_layers=["conv1_2"], style_layers=["conv1_1"])
    places = 8 * 6
    convolutions = 2 * 9 * (3 * 64 + 64 * 64) * places
    gram = 2 * 64 * 64 * places
    assert operations(job, (8, 6)) == 2 * convolutions + 2 * gram


def test_a_deeper_layer_has_a_quarter_of_the_places() -> None:
    above = settings(content_layers=["conv1_2"], style_layers=["conv1_2"])
    below = settings(content_layers=["conv2_1"], style_layers=["conv1_2"])
    more = operations(below, (8, 6)) - operations(above, (8, 6))
    assert more == 2 * 2 * 9 * 64 * 128 * (4 * 3)


def test_a_gram_matrix_costs_as_much_after_the_relu() -> None:
    before, after = settings(), settings(style_layers=["relu1_1", "relu3_1"])
    same = settings(style_layers=["conv1_1", "conv3_1"])
    assert operations(after, (64, 64)) == operations(same, (64, 64))
    assert operations(before, (64, 64)) > operations(same, (64, 64))


def test_reading_goes_forward_only_to_what_each_picture_is_read_for() -> None:
    job = settings(content_layers=["conv1_1"], style_layers=["conv1_2"])
    content = 2 * 9 * 3 * 64 * 100
    style = 2 * 9 * (3 * 64 + 64 * 64) * 50 + 2 * 64 * 64 * 50
    assert reading_operations(job, (10, 10), [(5, 10)] * 3) == content + 3 * style


# -- Time -----------------------------------------------------------------------------


def test_every_step_costs_its_operations_and_the_targets_are_read_once() -> None:
    job = settings(steps=40, style_size=120)
    of_steps = 40 * operations(job, (256, 171))
    of_reading = reading_operations(job, (256, 171), [(120, 90)])
    assert seconds(job, COMPUTES) == pytest.approx((of_steps + of_reading) / 1e9)


def test_the_history_is_read_as_it_grows_and_no_further_than_it_does() -> None:
    pixels = 256 * 171
    for steps, pairs in (
        (10, sum(range(10))),
        (150, sum(min(k, HISTORY_AT_MOST) for k in range(150))),
    ):
        moved = steps * UPDATE_BYTES["lbfgs"] + pairs * HISTORY_BYTES
        job = settings(steps=steps)
        assert seconds(job, READS) == pytest.approx(moved * pixels / 1e9)


def test_adam_reads_no_history_and_has_no_preconditioner() -> None:
    moved = 150 * UPDATE_BYTES["adam"] * 256 * 171
    for given in ({}, {"preconditioner": "frequency"}):
        job = settings(steps=150, optimizer="adam", **given)
        assert seconds(job, READS) == pytest.approx(moved / 1e9)


def test_a_preconditioner_costs_as_much_in_every_step() -> None:
    plain, with_one = settings(), settings(preconditioner="frequency")
    more = seconds(with_one, READS) - seconds(plain, READS)
    assert more == pytest.approx(700 * PRECONDITIONER_BYTES * 256 * 171 / 1e9)


def test_bands_that_are_not_held_are_computed_a_second_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job, size = settings(image_size=1024, steps=1), fit(PHOTO, 1024)
    held = Plan(rows=100, held=7, half=False, history=5)
    reading = reading_operations(job, size, [fit(PAINTING, 1024)])
    found = []
    for one in (held, replace(held, held=1)):
        monkeypatch.setattr(estimates, "_plan", lambda *_, one=one, **__: one)
        found.append(seconds(job, COMPUTES) * 1e9 - reading)
    assert found[0] == pytest.approx(operations(job, size))
    assert found[1] == pytest.approx((1 + RE_READ * 6 / 7) * found[0])


def test_a_worker_that_is_fast_in_bfloat16_gains_by_mixed_precision() -> None:
    exact, mixed = (settings(precision=each) for each in ("float32", "mixed"))
    fast, slow = Speed(1e9, 4e9, 1e30), Speed(1e9, None, 1e30)
    assert seconds(exact, fast) == seconds(exact, slow) == seconds(mixed, slow)
    # Four fifths of the steps at four times the pace; the targets are read twice.
    assert seconds(mixed, fast) == pytest.approx(0.4 * seconds(exact, slow), rel=0.01)


def test_a_change_of_precision_keeps_the_history() -> None:
    exact, mixed = (settings(precision=each) for each in ("float32", "mixed"))
    assert seconds(mixed, READS) == pytest.approx(seconds(exact, READS))


def test_steps_at_coarse_scales_are_cheap_and_each_begins_without_history() -> None:
    whole, coarse = (
        settings(image_size=1024, steps=300),
        settings(image_size=1024, steps=300, scales=3),
    )
    shares = (150 / 16 + 100 / 4 + 50) / 300
    assert seconds(coarse, COMPUTES) == pytest.approx(
        shares * seconds(whole, COMPUTES), rel=0.02
    )
    pixels = [fit(PHOTO, 1024)[0] // n * (fit(PHOTO, 1024)[1] // n) for n in (4, 2, 1)]
    moved = [
        sum(
            UPDATE_BYTES["lbfgs"] + HISTORY_BYTES * min(k, HISTORY_AT_MOST)
            for k in range(steps)
        )
        for steps in (150, 100, 50)
    ]
    assert seconds(coarse, READS) * 1e9 == pytest.approx(
        sum(a * b for a, b in zip(pixels, moved, strict=True))
    )


# -- Memory ---------------------------------------------------------------------------


def test_memory_is_that_of_the_plan_with_the_history_there_will_be() -> None:
    budget = 3000 * MB
    for steps in (20, 700):
        job, size = settings(image_size=1024, steps=steps), fit(PHOTO, 1024)
        found = plan(job, size, budget)
        assert found is not None
        taken = replace(found, history=min(found.history, steps - 1))
        assert on(job, budget=budget).memory_bytes == peak_bytes(job, size, taken)


def test_of_several_scales_the_largest_peak_counts() -> None:
    # The first scale's history is long, the last one's picture is large.
    one, three = (settings(image_size=1024, steps=60, scales=n) for n in (1, 3))
    last = plan(three, fit(PHOTO, 1024))
    assert last is not None
    assert on(three).memory_bytes == peak_bytes(
        three, fit(PHOTO, 1024), replace(last, history=9)
    )
    assert on(three).memory_bytes < on(one).memory_bytes


def test_no_estimate_is_above_the_budget() -> None:
    for megabytes in (1400, 1800, 2500, 6000):
        for given in ({}, {"scales": 3}, {"optimizer": "adam"}):
            job = settings(image_size=1024, steps=500, **given)
            found = on(job, budget=megabytes * MB)
            assert found.memory_bytes <= megabytes * MB


# -- What fits ------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1000, 1500, 4000])
@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("preset", ["classic", "gatys", "print"])
def test_the_largest_size_fits_and_the_next_does_not(
    budget: int, gpu: bool, preset: str
) -> None:
    job = settings(preset=preset)
    found = largest_size(job, PHOTO, budget * MB, gpu=gpu)
    assert 32 <= found < 8192

    def of_size(longer: int) -> JobSettings:
        return job.model_copy(update={"image_size": longer})

    assert fits(of_size(found), PHOTO, budget * MB, gpu=gpu)
    assert not fits(of_size(found + 16), PHOTO, budget * MB, gpu=gpu)
    speed = {"speed": CPU, "gpu": gpu}
    too_large = of_size(found + 16)
    assert estimate(too_large, PHOTO, [PAINTING], budget * MB, **speed) is None  # type: ignore[arg-type]


def test_where_nothing_fits_the_largest_size_is_none_and_without_a_budget_all() -> None:
    assert largest_size(settings(), PHOTO, 100 * MB) == 0
    assert largest_size(settings(), PHOTO, None) == 8192


def test_a_narrow_picture_may_be_longer() -> None:
    narrow = largest_size(settings(), (3000, 300), 2000 * MB)
    assert narrow > 2 * largest_size(settings(), PHOTO, 2000 * MB)


# -- For people -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (0.2, "1 s"),
        (7.6, "8 s"),
        (41.2, "40 s"),
        (42.5, "45 s"),
        (149, "2 min"),
        (150, "3 min"),
        (5399, "90 min"),
        (9100, "3 h"),
    ],
)
def test_an_estimate_is_written_no_more_exactly_than_it_is(
    found: float, text: str
) -> None:
    assert about(found) == text
    assert str(Estimate(940 * MB, found)) == f"about {text} and 0.9 GB"
