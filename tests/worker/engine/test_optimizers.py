import pytest
import torch

from stylequeue_worker.engine.optimizers import (
    FIRST_RADIUS,
    GROWTH,
    LBFGS,
    LEAST_RADIUS,
    SHRINKAGE,
    Adam,
    build_optimizer,
    rms,
)
from tests.worker.engine.tiny import settings


def descend(optimizer, steps, target, scales):
    """Minimise a badly scaled quadratic; return the picture."""
    picture = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64)
    for _ in range(steps):
        off = picture - target
        loss = float((scales * off.square()).sum()) / 2
        picture = optimizer.step(picture, scales * off, loss)
        assert 0 <= picture.min() <= picture.max() <= 1
    return picture


def quadratic():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(1, 3, 4, 4, generator=generator, dtype=torch.float64)
    scales = torch.logspace(0, 2, 48, dtype=torch.float64).view(1, 3, 4, 4)
    return target, scales


def test_lbfgs_solves_a_badly_scaled_quadratic():
    target, scales = quadratic()
    found = descend(LBFGS(20), 150, target, scales)
    assert (found - target).abs().max() < 1e-5


def test_the_direction_is_that_of_torchs_lbfgs():
    target, scales = quadratic()
    target = 0.5 + 0.01 * target
    picture = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64).requires_grad_()
    reference = torch.optim.LBFGS(
        [picture], max_iter=1, history_size=8, tolerance_grad=0, tolerance_change=0
    )

    def closure():
        picture.grad = (scales * (picture - target)).detach()
        return torch.zeros(())

    for _ in range(25):
        reference.step(closure)
    state = reference.state[picture]
    ours = LBFGS(8)
    for s, y in zip(state["old_stps"], state["old_dirs"], strict=True):
        ours._remember(s, y)
    # The last direction was taken at the last gradient, with all these pairs.
    found = ours._direction(-state["prev_flat_grad"])
    torch.testing.assert_close(found, state["d"], rtol=1e-9, atol=0)


def test_adam_approaches_the_minimum():
    target, scales = quadratic()
    assert (descend(Adam(), 100, target, scales) - target).abs().mean() < 0.02


@pytest.mark.parametrize("optimizer", [LBFGS(5), Adam()])
def test_a_picture_stays_within_0_and_1_when_the_minimum_is_outside(optimizer):
    found = descend(optimizer, 60, 2 * torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 4))
    assert found.min() > 0.99


def test_lbfgs_finds_the_best_picture_where_the_bounds_forbid_the_minimum():
    # All values depend on each other, so that one that is held changes the others.
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(48, 48, generator=generator, dtype=torch.float64)
    curvature = root @ root.T / 48 + 0.05 * torch.eye(48, dtype=torch.float64)
    minimum = torch.rand(48, generator=generator, dtype=torch.float64) * 3 - 1
    picture, optimizer = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64), LBFGS(20)
    for _ in range(200):
        off = picture.view(-1) - minimum
        gradient = curvature @ off
        loss = float(off @ gradient) / 2
        picture = optimizer.step(picture, gradient.view(picture.shape), loss)
    values = picture.view(-1)
    held = ((values == 0) & (gradient > 0)) | ((values == 1) & (gradient < 0))
    # The conditions of Karush, Kuhn and Tucker: only at a bound is there a slope.
    assert 5 < held.sum() < 43
    assert gradient[~held].abs().max() < 1e-6


@pytest.mark.parametrize("optimizer", [LBFGS(5), Adam()])
def test_a_picture_without_gradient_stays(optimizer):
    picture = torch.rand(1, 3, 4, 4)
    for _ in range(2):
        found = optimizer.step(picture, torch.zeros_like(picture), 0.0)
        assert torch.equal(found, picture)


def test_a_step_of_lbfgs_is_bounded():
    optimizer, picture = LBFGS(5), torch.full((1, 3, 8, 8), 0.5)
    # Hardly any curvature: the minimum seems to be very far away.
    for slope, radius in ((1.0, FIRST_RADIUS), (0.999, GROWTH * FIRST_RADIUS)):
        moved = optimizer.step(picture, torch.full_like(picture, slope), slope)
        assert rms(moved - picture) <= radius * 1.001


def test_lbfgs_gets_down_from_where_the_slope_grows_on_the_way():
    # No curvature at first, but that of a hilltop, as at some pictures' content.
    picture, optimizer = torch.full((1, 3, 4, 4), 0.9, dtype=torch.float64), LBFGS(5)
    losses = []
    for _ in range(60):
        loss = float(picture.mul(torch.pi).cos().sum())
        losses.append(-loss)
        slope = torch.pi * picture.mul(torch.pi).sin()
        picture = optimizer.step(picture, slope, -loss)
    assert losses[-1] == pytest.approx(-48, abs=1e-6)


def test_lbfgs_goes_on_from_the_best_picture_where_the_loss_has_grown():
    best = torch.full((1, 3, 8, 8), 0.5)
    slope = torch.ones_like(best)
    optimizer = LBFGS(5)
    too_far = optimizer.step(best, slope, 1.0)
    again = optimizer.step(too_far, 2 * slope, 1.5)
    assert rms(again - best) == pytest.approx(
        SHRINKAGE * float(rms(too_far - best)), rel=1e-3
    )


def test_a_pair_without_curvature_is_not_remembered():
    optimizer, picture = LBFGS(5), torch.full((1, 3, 4, 4), 0.5)
    picture = optimizer.step(picture, torch.ones_like(picture), 1.0)
    optimizer.step(picture, torch.full_like(picture, 2.0), 0.5)
    assert not optimizer.pairs


def test_no_more_pairs_are_kept_than_the_history_holds():
    target, scales = quadratic()
    optimizer = LBFGS(7)
    descend(optimizer, 20, target, scales)
    assert len(optimizer.pairs) == 7


def test_the_settings_choose_the_optimizer():
    assert isinstance(build_optimizer(settings(optimizer="adam"), (8, 8), 0), Adam)
    assert isinstance(build_optimizer(settings(optimizer="lbfgs"), (8, 8), 9), LBFGS)


@pytest.mark.parametrize("begin_anew", [LBFGS.restart, LBFGS.forget_losses])
def test_steps_that_were_shrunk_to_nothing_begin_anew_with_something(begin_anew):
    target, scales = quadratic()
    optimizer = LBFGS(5)
    descend(optimizer, 5, target, scales)
    optimizer.radius = torch.tensor(1e-20)
    begin_anew(optimizer)
    picture = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64)
    moved = optimizer.step(picture, torch.ones_like(picture), 1.0)
    assert 1e-7 < rms(moved - picture) <= LEAST_RADIUS * 1.001


def test_a_restart_forgets_all_pairs_and_takes_smaller_steps():
    target, scales = quadratic()
    optimizer = LBFGS(5)
    picture = descend(optimizer, 9, target, scales)
    for times in (1, 2, 3):
        optimizer.restart()
        assert not optimizer.pairs
        moved = optimizer.step(picture, torch.ones_like(picture), 1.0)
        assert rms(moved - picture) <= FIRST_RADIUS * SHRINKAGE**times * 1.001


def test_a_history_that_is_shortened_keeps_the_newest_pairs():
    target, scales = quadratic()
    optimizer = LBFGS(9)
    descend(optimizer, 20, target, scales)
    newest = list(optimizer.pairs)[-4:]
    optimizer.shorten(4)
    assert all(
        ours is theirs for ours, theirs in zip(optimizer.pairs, newest, strict=True)
    )
    assert len(optimizer.pairs) == 4
    picture = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64)
    optimizer.step(picture, scales * (picture - target), 1.0)
    assert len(optimizer.pairs) == 4
