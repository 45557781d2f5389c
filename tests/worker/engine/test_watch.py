import math

import pytest
import torch

from stylequeue_shared.errors import NumericalError
from stylequeue_worker.engine.watch import (
    BAD_AT_MOST,
    FLAT_SHARE,
    FLAT_STEPS,
    STALLED_STEPS,
    Watch,
)

GOOD = (3.0, 2.0, 0.0, 7.0)


def pictures():
    number = 0.0
    while True:
        yield torch.full((1, 3, 2, 2), number)
        number += 1


def watching(*losses):
    """Return a watch that saw these losses, and the pictures that it saw."""
    watch, seen = Watch(), []
    for picture, loss in zip(pictures(), losses, strict=False):
        watch.see(picture, (loss, 0.0, 0.0))
        seen.append(picture)
    return watch, seen


def test_the_best_picture_is_that_of_the_lowest_loss():
    watch, seen = watching(5, 3, 4, 3, 6)
    assert watch.best is seen[1]
    assert (watch.loss, watch.losses) == (3, (3, 0, 0))


def test_all_three_losses_count_together():
    watch, _ = watching(5)
    better = torch.ones(1, 3, 2, 2)
    watch.see(better, (1.0, 2.0, 1.5))
    assert watch.best is better
    assert watch.loss == 4.5


@pytest.mark.parametrize(
    ("place", "name"),
    list(enumerate(["style loss", "content loss", "total variation", "gradient"])),
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named(place, name, value):
    values = (*GOOD[:place], value, *GOOD[place + 1 :])
    with pytest.raises(NumericalError, match=f"step 7: the {name} is not finite"):
        Watch().is_well(7, values)
    watch, _ = watching(5)
    assert not watch.is_well(7, values)


def test_finite_values_are_well():
    assert Watch().is_well(1, GOOD)


def test_a_few_evaluations_in_a_row_may_be_bad():
    watch, _ = watching(5)
    bad = (math.nan, *GOOD[1:])
    for _ in range(3):
        assert [watch.is_well(n, bad) for n in range(BAD_AT_MOST)] == [False] * 3
        # A good one in between, and counting begins again.
        assert watch.is_well(9, GOOD)
    for number in range(BAD_AT_MOST):
        watch.is_well(number, bad)
    with pytest.raises(NumericalError, match="4th time"):
        watch.is_well(9, bad)


def test_a_run_has_stalled_after_so_many_steps_without_a_lower_loss():
    watch, _ = watching(5, *[6] * (STALLED_STEPS - 1))
    assert not watch.has_stalled()
    # A loss that is as low is no lower.
    watch.see(torch.ones(1, 3, 2, 2), (5.0, 0.0, 0.0))
    assert watch.has_stalled()
    assert not watch.has_stalled()


def test_a_lower_loss_ends_a_stall():
    watch, _ = watching(5, *[6] * (STALLED_STEPS - 1), 4, 6)
    assert not watch.has_stalled()


@pytest.mark.parametrize(
    ("share", "is_flat"), [(0.99 * FLAT_SHARE, True), (1.01 * FLAT_SHARE, False)]
)
def test_a_run_is_flat_where_many_steps_have_lowered_the_loss_by_little(share, is_flat):
    falling = [1000 * (1 - share * n / FLAT_STEPS) for n in range(FLAT_STEPS + 1)]
    watch, _ = watching(2e3, 1e6, *falling)
    assert watch.is_flat == is_flat


def test_a_run_whose_loss_is_always_zero_is_flat():
    watch, _ = watching(*[0] * (FLAT_STEPS + 1))
    assert watch.is_flat


def test_no_run_is_flat_before_so_many_steps():
    watch, _ = watching(*[5] * FLAT_STEPS)
    assert not watch.is_flat
    watch.see(torch.ones(1, 3, 2, 2), (5.0, 0.0, 0.0))
    assert watch.is_flat


def test_losses_that_bounce_are_flat_if_the_lowest_does_not_fall():
    watch, _ = watching(1, *[5, 50] * FLAT_STEPS)
    assert watch.is_flat


def test_losses_of_another_kind_are_not_compared_with_those_before():
    watch, seen = watching(*[5] * (FLAT_STEPS + 1))
    watch.forget_losses()
    assert not watch.is_flat
    # Until there is another, the best picture stays, with losses that are finite.
    assert (watch.best, watch.losses) == (seen[0], (5, 0, 0))
    other = torch.ones(1, 3, 2, 2)
    watch.see(other, (9.0, 0.0, 0.0))
    assert (watch.best, watch.loss) == (other, 9)


def test_a_watch_put_back_goes_on_alike():
    watch, _ = watching(5, *[6] * (STALLED_STEPS - 2))
    bad = (math.nan, *GOOD[1:])
    watch.is_well(3, bad)
    other = Watch()
    other.restore(watch.tensors())
    assert other.tensors().keys() == watch.tensors().keys()
    for one in (watch, other):
        assert one.losses == (5, 0, 0)
        assert [one.is_well(4, bad), one.is_well(5, bad)] == [False, False]
        with pytest.raises(NumericalError):
            one.is_well(6, bad)
        assert not one.has_stalled()
        one.see(torch.ones(1, 3, 2, 2), (7.0, 0.0, 0.0))
        one.see(torch.ones(1, 3, 2, 2), (7.0, 0.0, 0.0))
        assert one.has_stalled()
        for _ in range(FLAT_STEPS - STALLED_STEPS - 1):
            one.see(torch.ones(1, 3, 2, 2), (7.0, 0.0, 0.0))
        assert not one.is_flat
        one.see(torch.ones(1, 3, 2, 2), (7.0, 0.0, 0.0))
        assert one.is_flat


def test_a_watch_put_back_after_losses_were_forgotten_has_forgotten_them():
    watch, _ = watching(5)
    watch.forget_losses()
    other = Watch()
    other.restore(watch.tensors())
    assert (other.loss, other.losses) == (math.inf, (5, 0, 0))


@pytest.mark.parametrize("missing", ["numbers", "best"])
def test_what_is_missing_is_named(missing):
    watch, _ = watching(5)
    tensors = watch.tensors()
    del tensors[missing]
    with pytest.raises(KeyError, match=missing):
        Watch().restore(tensors)
