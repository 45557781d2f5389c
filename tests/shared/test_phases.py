import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as any_of

from stylequeue_shared.job_settings import complete_settings
from stylequeue_shared.phases import LOWER_SHARE, SMALLEST_SIDE, Phase, phases

any_size = any_of.tuples(any_of.integers(1, 3000), any_of.integers(1, 3000))
any_steps = any_of.integers(1, 12) | any_of.integers(1, 3000)
quickly = settings(max_examples=200, deadline=None, derandomize=True)


def job(**values):
    return complete_settings({"seed": 3, "snapshot_every": 1000, **values}, styles=1)


@quickly
@given(any_size, any_steps, any_of.integers(1, 6), any_of.booleans())
def test_phases_hold_every_step_once_and_end_at_the_full_size(size, steps, scales, low):
    precision = "mixed" if low else "float32"
    found = phases(job(steps=steps, scales=scales, precision=precision), size, True)
    numbers = [range(phase.first, phase.last + 1) for phase in found]
    assert list(itertools.chain(*numbers)) == list(range(1, steps + 1))
    assert all(numbers)
    assert found[-1].shrunk == 1


@quickly
@given(any_size, any_steps, any_of.integers(1, 6))
def test_each_scale_is_smaller_than_the_next_and_none_too_small(size, steps, scales):
    found = phases(job(steps=steps, scales=scales), size, False)
    shrunk = [phase.shrunk for phase in found]
    assert shrunk == sorted(set(shrunk), reverse=True)
    assert len(found) <= scales
    assert len(found) == 1 or min(size) // shrunk[0] >= SMALLEST_SIDE


def test_of_three_scales_the_steps_are_shared_three_to_two_to_one():
    assert phases(job(steps=300, scales=3), (1024, 683), True) == [
        Phase(1, 150, 4, False),
        Phase(151, 250, 2, False),
        Phase(251, 300, 1, False),
    ]


@pytest.mark.parametrize(
    ("shorter", "shrunk"), [(255, 2), (256, 4), (127, 1), (128, 2)]
)
def test_there_are_fewer_scales_where_the_picture_would_be_too_small(shorter, shrunk):
    assert phases(job(scales=3), (4000, shorter), False)[0].shrunk == shrunk


@pytest.mark.parametrize("steps", range(1, 12))
def test_few_steps_still_reach_the_full_size(steps):
    found = phases(job(steps=steps, scales=6), (4096, 4096), False)
    assert found[-1].shrunk == 1
    assert found[-1].last == steps


def test_in_mixed_precision_the_first_steps_of_each_scale_are_in_the_lower():
    found = phases(job(steps=300, scales=3, precision="mixed"), (1024, 683), True)
    assert found == [
        Phase(1, 120, 4, True),
        Phase(121, 150, 4, False),
        Phase(151, 230, 2, True),
        Phase(231, 250, 2, False),
        Phase(251, 290, 1, True),
        Phase(291, 300, 1, False),
    ]
    assert LOWER_SHARE == 0.8


@pytest.mark.parametrize(("precision", "fast"), [("mixed", False), ("float32", True)])
def test_no_step_is_in_the_lower_precision_unless_asked_for_and_fast(precision, fast):
    assert phases(job(steps=50, precision=precision), (512, 512), fast) == [
        Phase(1, 50, 1, False)
    ]
