import math

import pytest
import torch

from stylequeue_worker.engine.optimizers import LBFGS, build_optimizer
from stylequeue_worker.engine.preconditioner import EXPONENT, Preconditioner
from tests.worker.engine.tiny import settings

SIZES = [(16, 16), (15, 16), (16, 15), (17, 31), (1, 8), (8, 1), (1, 1)]


def random(size, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3 * math.prod(size), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("size", SIZES)
def test_it_is_linear_symmetric_and_positive(size):
    divide = Preconditioner(*size[::-1])
    a, b = random(size, 1), random(size, 2)
    torch.testing.assert_close(divide(2 * a - b), 2 * divide(a) - divide(b))
    assert float(a.dot(divide(b))) == pytest.approx(float(b.dot(divide(a))), rel=1e-9)
    assert a.dot(divide(a)) > 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_precision_stay(size, dtype):
    given = random(size, 1).to(dtype)
    before = given.clone()
    found = Preconditioner(*size[::-1])(given)
    assert (found.shape, found.dtype) == (given.shape, dtype)
    assert torch.equal(given, before)


def wave(size, down, across):
    rows = torch.arange(size[0], dtype=torch.float64).unsqueeze(1) * down / size[0]
    columns = torch.arange(size[1], dtype=torch.float64) * across / size[1]
    one = (2 * math.pi * (rows + columns)).cos()
    return torch.stack([one, 2 * one, -one]).flatten()


@pytest.mark.parametrize(("down", "across"), [(1, 0), (0, 3), (3, 4), (-2, 5), (8, 8)])
def test_a_wave_is_divided_by_a_power_of_its_frequency(down, across):
    size = (16, 32)
    given = wave(size, down, across)
    frequency = math.hypot(down / size[0], across / size[1])
    found = Preconditioner(*size[::-1])(given)
    torch.testing.assert_close(
        found, given * frequency**-EXPONENT, rtol=1e-6, atol=1e-9
    )


def test_the_mean_is_moved_as_the_slowest_wave_is():
    size = (16, 32)
    divide = Preconditioner(*size[::-1])
    mean, slowest = torch.ones(3 * 16 * 32, dtype=torch.float64), wave(size, 0, 1)
    expected = float(divide(slowest).norm() / slowest.norm())
    assert float(divide(mean).norm() / mean.norm()) == pytest.approx(expected, rel=1e-6)


def test_colours_are_apart_from_each_other():
    given = torch.zeros(3, 8, 8, dtype=torch.float64)
    given[1, 2, 3] = 1
    found = Preconditioner(8, 8)(given.flatten()).view(3, 8, 8)
    assert found[1].abs().min() > 0
    assert found[[0, 2]].abs().max() == 0


def test_the_settings_choose_it_for_lbfgs_alone():
    preconditioned = build_optimizer(settings(preconditioner="frequency"), (6, 8), 9)
    assert preconditioned.preconditioner.size == (8, 6)
    assert build_optimizer(settings(), (6, 8), 9).preconditioner is None
    adam = build_optimizer(
        settings(preconditioner="frequency", optimizer="adam"), (6, 8), 0
    )
    assert not hasattr(adam, "preconditioner")


def test_lbfgs_needs_fewer_steps_where_fine_structure_is_steep():
    size = (32, 32)
    target = random(size, 3).view(1, 3, *size) / 10
    frequency = torch.fft.fftfreq(32, dtype=torch.float64).unsqueeze(1).square()
    steep = (frequency + torch.fft.rfftfreq(32, dtype=torch.float64).square()) ** 2

    def slope(off):
        return torch.fft.irfft2(torch.fft.rfft2(off) * (steep + 1e-3), s=size)

    def loss_after(steps, optimizer):
        picture = torch.full_like(target, 0.5)
        for _ in range(steps):
            off = picture - 0.5 - target
            gradient = slope(off)
            loss = float((off * gradient).sum()) / 2
            picture = optimizer.step(picture, gradient, loss)
        return loss

    plain, preconditioned = LBFGS(10), LBFGS(10, Preconditioner(*size[::-1]))
    assert loss_after(40, preconditioned) < 0.5 * loss_after(40, plain)


def test_the_direction_solves_what_the_preconditioner_is_the_inverse_of():
    # Of a quadratic whose inverse Hessian is the preconditioner, one pair tells all.
    size = (12, 10)
    divide = Preconditioner(*size[::-1])
    optimizer = LBFGS(5, divide)
    y, gradient = random(size, 1), random(size, 2)
    optimizer._remember(divide(y), y)
    expected = divide(gradient)
    found = optimizer._direction(gradient.clone())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
