import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as any_of

from stylequeue_shared.job_settings import complete_settings
from stylequeue_shared.layers import LAYERS, stride
from stylequeue_shared.plans import (
    BAND_PIXELS,
    HISTORY_AT_LEAST,
    HISTORY_AT_MOST,
    MB,
    Plan,
    band_rows,
    fewest_held,
    peak_bytes,
    plan,
    smaller,
)

quickly = settings(max_examples=150, deadline=None, derandomize=True)
any_layers = any_of.lists(
    any_of.sampled_from(LAYERS), min_size=1, max_size=4, unique=True
)
any_side = any_of.integers(16, 5000)
any_size = any_of.tuples(any_side, any_side)
any_budget = any_of.integers(600, 20_000).map(lambda number: number * MB)


def job(**values):
    return complete_settings({"seed": 3, **values}, styles=1)


any_job = any_of.builds(
    job,
    content_layers=any_layers,
    style_layers=any_layers,
    optimizer=any_of.sampled_from(["lbfgs", "adam"]),
    preconditioner=any_of.sampled_from(["none", "frequency"]),
)


@quickly
@given(any_job, any_size, any_budget)
def test_a_plan_keeps_within_its_budget(given, size, budget):
    found = plan(given, size, budget)
    if found is not None:
        assert peak_bytes(given, size, found) <= budget


@quickly
@given(any_job, any_size, any_budget)
def test_there_is_no_plan_only_where_the_smallest_does_not_fit(given, size, budget):
    pairs = HISTORY_AT_LEAST if given.optimizer == "lbfgs" else 0
    least = peak_bytes(
        given, size, Plan(band_rows(given, size), fewest_held(given, size), True, pairs)
    )
    assert (plan(given, size, budget) is None) == (least > budget)


@quickly
@given(any_job, any_size, any_of.sampled_from([False, True]))
def test_the_smallest_plan_is_taken_from_its_very_byte_on(given, size, half):
    pairs = HISTORY_AT_LEAST if given.optimizer == "lbfgs" else 0
    smallest = Plan(band_rows(given, size), fewest_held(given, size), half, pairs)
    enough = peak_bytes(given, size, smallest)
    found = plan(given, size, enough)
    assert found is not None
    # More bands may be held where that takes no more memory.
    assert replace(found, held=smallest.held) == smallest
    assert peak_bytes(given, size, found) == enough
    less = plan(given, size, enough - 1)
    assert less is None if half else less is None or less.half


@quickly
@given(any_size, any_budget)
def test_features_take_no_more_than_half_while_pairs_are_missing(size, budget):
    found = plan(job(), size, budget)
    if found is None or found.history == HISTORY_AT_MOST:
        return
    smallest = Plan(found.rows, fewest_held(job(), size), found.half, HISTORY_AT_LEAST)
    least = peak_bytes(job(), size, smallest)
    features = peak_bytes(job(), size, replace(smallest, held=found.held)) - least
    assert features <= (budget - least) / 2 + 1


@quickly
@given(any_job, any_size, any_budget, any_of.integers(0, 2000 * MB))
def test_a_larger_budget_never_gives_less(given, size, budget, more):
    found, larger = plan(given, size, budget), plan(given, size, budget + more)
    if found is None:
        return
    assert larger.half <= found.half
    # Exact targets come before all else: with them, growth begins anew.
    if larger.half == found.half:
        assert larger.history >= found.history
        assert larger.held >= found.held


def test_each_megabyte_more_gives_no_less():
    size, given = (1024, 768), job()
    found = [plan(given, size, number * MB) for number in range(700, 5000)]
    for earlier, later in itertools.pairwise(one for one in found if one is not None):
        if later.half == earlier.half:
            assert later.history >= earlier.history
            assert later.held >= earlier.held
    assert found[-1] == plan(given, size)


@quickly
@given(any_job, any_size, any_budget)
def test_hardly_any_of_a_budget_that_is_too_small_for_all_is_left(given, size, budget):
    found = plan(given, size, budget)
    if found is None or found.half or found == plan(given, size):
        return
    one_more = Plan(found.rows, found.held + 1, False, found.history + 1)
    assert peak_bytes(given, size, one_more) > budget


@quickly
@given(any_job, any_size)
def test_without_a_budget_nothing_is_spared(given, size):
    found = plan(given, size)
    assert (found.held - 1) * found.rows < size[1] <= found.held * found.rows
    assert not found.half
    assert found.history == (HISTORY_AT_MOST if given.optimizer == "lbfgs" else 0)


@quickly
@given(any_job, any_size, any_budget)
def test_each_smaller_plan_takes_less_until_there_is_none(given, size, budget):
    found = plan(given, size, budget)
    ladder = []
    while found is not None:
        ladder.append(found)
        found = smaller(given, size, found)
        assert len(ladder) < 40
    peaks = [peak_bytes(given, size, one) for one in ladder]
    assert peaks == sorted(set(peaks), reverse=True)


def test_blocks_become_smaller_first_and_then_the_history_shorter():
    found, ladder = Plan(32, 9, False, 37), []
    while found := smaller(job(), (2048, 288), found):
        ladder.append(found)
    assert ladder == [
        Plan(32, 4, False, 37),
        Plan(32, 2, False, 37),
        Plan(32, 1, False, 37),
        Plan(32, 1, True, 18),
        Plan(32, 1, True, 9),
        Plan(32, 1, True, 5),
    ]


@pytest.mark.parametrize("history", [0, 5])
def test_the_content_is_halved_where_no_history_is_left_to_shorten(history):
    halved = Plan(32, 1, True, history)
    size = (2048, 288)
    assert smaller(job(), size, Plan(32, 1, False, history)) == halved
    assert smaller(job(), size, halved) is None


@pytest.mark.parametrize("budget", [0, 100 * MB, 640 * MB])
def test_where_nothing_fits_there_is_no_plan(budget):
    assert plan(job(), (512, 512), budget) is None


@quickly
@given(any_job, any_size)
def test_bands_are_multiples_of_twice_the_deepest_stride(given, size):
    rows, step = band_rows(given, size), 2 * stride(given.layers[-1])
    assert rows > 0
    assert rows % step == 0
    assert rows == step or rows * size[0] <= BAND_PIXELS


@pytest.mark.parametrize(
    ("side", "preconditioner", "budget"),
    [
        (2048, "none", 2500 * MB),
        (2048, "frequency", 2500 * MB),
        (4096, "none", 6000 * MB),
        (4096, "frequency", 6500 * MB),
    ],
)
def test_large_pictures_fit_where_they_should(side, preconditioner, budget):
    given = job(image_size=side, preconditioner=preconditioner)
    found = plan(given, (side, side), budget)
    assert found is not None
    assert found.history >= HISTORY_AT_LEAST


def test_adam_has_no_pairs_and_fits_where_lbfgs_does_not():
    size, budget = (2048, 2048), 1800 * MB
    assert plan(job(), size, budget) is None
    found = plan(job(optimizer="adam"), size, budget)
    assert found.history == 0
