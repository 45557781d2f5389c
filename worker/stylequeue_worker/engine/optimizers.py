"""How a picture moves, given the gradient at it; it stays within 0..1."""

import math
from collections import deque
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from stylequeue_shared.job_settings import JobSettings
from stylequeue_worker.engine.preconditioner import Preconditioner

# How long a step may be: the root mean square of it, in units of the picture, whose
# values are 0..1. Measured; twice as much or half of it is about as fast.
FIRST_RADIUS = 0.01
LARGEST_RADIUS = 0.05
# What a fresh start is given at least: the steps before it may have been shrunk to
# nothing, from where growth would take hundreds of steps.
LEAST_RADIUS = 1e-4
GROWTH, SHRINKAGE = 1.5, 0.25

ADAM_RATE = 0.03
ADAM_BETAS = (0.9, 0.99)


class Optimizer(Protocol):
    """Moves a picture; holds what it remembers of earlier steps."""

    def step(self, picture: Tensor, gradient: Tensor, loss: float) -> Tensor:
        """Return the next picture, a new tensor in 0..1."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return all that is remembered, by name; nothing writes to it later."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember what `tensors` gave. Raises KeyError when some of it is missing."""
        ...

    def restart(self) -> None:
        """Forget all that was learnt, and go on in smaller steps."""
        ...

    def forget_losses(self) -> None:
        """Compare the next loss with none of those before: it is of another kind."""
        ...

    def shorten(self, history: int) -> None:
        """Remember no more than `history` pairs of steps from now on."""
        ...


class LBFGS:
    """L-BFGS within the bounds 0..1, with a trust region in place of a line search.

    After Nocedal, Wright: Numerical Optimization, 7.4 (the two loops), 4.1 (trust
    region) and 16.7 (gradient projection). A line search spends evaluations, which
    are what a step costs. Here each step is taken whole, no longer than a radius. If
    the loss has grown, the next step goes out from the best picture again, with a
    smaller radius; what was learnt of the curvature is kept.

    A value that lies on its bound and is pushed outwards takes no part in a step:
    what the clamp took off a direction that relied on it made the loss bounce.

    A pair (s, y) holds the move as it was before the clamp. The move after it is the
    true one, but was measured to converge a little more slowly.

    With a preconditioner it is the first inverse Hessian, up to a factor.
    """

    def __init__(
        self, history: int, preconditioner: Preconditioner | None = None
    ) -> None:
        self.history = history
        self.preconditioner = preconditioner
        self.pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque()
        # How many pairs there have been: names those that are kept.
        self.count = 0
        self.last: tuple[Tensor, Tensor] | None = None
        self.best: tuple[Tensor, Tensor, float] | None = None
        # A tensor, since reading a number from a device would have to wait for it.
        self.radius = torch.tensor(FIRST_RADIUS)

    def step(self, picture: Tensor, gradient: Tensor, loss: float) -> Tensor:
        """Return the next picture, a new tensor in 0..1."""
        values, gradient = picture.reshape(-1), gradient.reshape(-1)
        if self.last is not None:
            move, earlier = self.last
            self._remember(move, gradient - earlier)
        values, gradient = self._judged(values, gradient, loss)
        fixed = torch.where(gradient > 0, values <= 0, values >= 1)
        # One tensor from the gradient to the move: pictures may be large.
        move = self._direction(gradient.neg().masked_fill_(fixed, 0))
        move.masked_fill_(fixed, 0)
        # A move of length 0 stays what it is.
        scale = (self.radius / rms(move)).nan_to_num(nan=0, posinf=0)
        # While nothing is known of the curvature, a move has no length of its own.
        move.mul_(scale.clamp(max=1) if self.pairs else scale)
        self.last = (move, gradient)
        return (values + move).clamp_(0, 1).view(picture.shape)

    def restart(self) -> None:
        """Forget all that was learnt, and go on in smaller steps."""
        self.pairs.clear()
        self.radius = SHRINKAGE * self.radius.clamp(max=FIRST_RADIUS)
        self.forget_losses()

    def forget_losses(self) -> None:
        """Compare the next loss with none of those before: it is of another kind."""
        self.last = self.best = None
        self.radius = self.radius.clamp(min=LEAST_RADIUS)

    def shorten(self, history: int) -> None:
        """Remember no more than `history` pairs of steps from now on."""
        self.history = history
        while len(self.pairs) > history:
            self.pairs.popleft()

    def tensors(self) -> dict[str, Tensor]:
        """Return all that is remembered, by name; nothing writes to it later."""
        kept: dict[str, Tensor] = {
            "count": torch.tensor(self.count),
            "radius": self.radius,
        }
        for number, (s, y, rho) in enumerate(self.pairs, self.count - len(self.pairs)):
            kept |= {f"{number}.s": s, f"{number}.y": y, f"{number}.rho": rho}
        if self.last is not None:
            kept["last.move"], kept["last.gradient"] = self.last
        if self.best is not None:
            kept["best.values"], kept["best.gradient"], loss = self.best
            kept["best.loss"] = torch.tensor(loss, dtype=torch.float64)
        return kept

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember what `tensors` gave. Raises KeyError when some of it is missing."""
        self.count, self.radius = int(tensors["count"]), tensors["radius"]
        numbers = sorted(int(name[:-4]) for name in tensors if name.endswith(".rho"))
        self.pairs.clear()
        for number in numbers:
            s, y, rho = (tensors[f"{number}.{part}"] for part in ("s", "y", "rho"))
            self.pairs.append((s, y, rho))
        self.last = self.best = None
        if "best.loss" in tensors:
            loss = float(tensors["best.loss"])
            self.last = tensors["last.move"], tensors["last.gradient"]
            self.best = tensors["best.values"], tensors["best.gradient"], loss

    def _judged(
        self, values: Tensor, gradient: Tensor, loss: float
    ) -> tuple[Tensor, Tensor]:
        """Return the values to go on from, and the gradient there; set the radius."""
        if self.best is None:
            self.best = (values, gradient, loss)
        elif loss > self.best[2]:
            assert self.last is not None
            self.radius = SHRINKAGE * rms(self.last[0])
        else:
            self.best = (values, gradient, loss)
            self.radius = (GROWTH * self.radius).clamp(max=LARGEST_RADIUS)
        return self.best[:2]

    def _remember(self, s: Tensor, y: Tensor) -> None:
        curvature = y.dot(s)
        # Without curvature the inverse Hessian would not stay positive definite.
        # Note: reading it is a device sync.
        if curvature > 1e-10 * s.norm() * y.norm():
            if len(self.pairs) == self.history:
                self.pairs.popleft()
            self.pairs.append((s, y, curvature.reciprocal()))
            self.count += 1

    def _direction(self, q: Tensor) -> Tensor:
        """Return the inverse Hessian times q, by the two-loop recursion, in q."""
        if not self.pairs:
            return self._first(q)
        alphas = []
        for s, y, rho in reversed(self.pairs):
            alpha = rho * s.dot(q)
            # In place and in one pass: the loops cost what memory takes to read.
            q.addcmul_(y, alpha, value=-1)
            alphas.append(alpha)
        _, y, rho = self.pairs[-1]
        q = self._first(q).div_(rho * y.dot(self._first(y)))
        for (s, y, rho), alpha in zip(self.pairs, reversed(alphas), strict=True):
            q.addcmul_(s, alpha - rho * y.dot(q))
        return q

    def _first(self, q: Tensor) -> Tensor:
        return q if self.preconditioner is None else self.preconditioner(q)


class Adam:
    """Adam (Kingma, Ba 2015): slower than L-BFGS, with a tenth of its memory."""

    def __init__(self) -> None:
        self.rate = ADAM_RATE
        self.count = 0
        self.mean: Tensor | None = None
        self.square: Tensor | None = None

    def step(self, picture: Tensor, gradient: Tensor, loss: float) -> Tensor:
        """Return the next picture, a new tensor in 0..1; the loss does not matter."""
        if self.mean is None or self.square is None:
            self.mean = torch.zeros_like(gradient)
            self.square = torch.zeros_like(gradient)
        self.count += 1
        slow, slower = ADAM_BETAS
        self.mean.lerp_(gradient, 1 - slow)
        self.square.lerp_(gradient.square(), 1 - slower)
        mean = self.mean / (1 - slow**self.count)
        spread = (self.square / (1 - slower**self.count)).sqrt()
        # No epsilon: gradients may be tiny all over. Where both are 0, nothing moves.
        move = (mean / spread).nan_to_num_(nan=0.0)
        return (picture - self.rate * move).clamp_(0, 1)

    def restart(self) -> None:
        """Forget all that was learnt, and go on in smaller steps."""
        self.count, self.mean, self.square = 0, None, None
        self.rate *= SHRINKAGE

    def forget_losses(self) -> None:
        """Do nothing: losses are not looked at."""

    def shorten(self, history: int) -> None:
        """Do nothing: there are no pairs."""

    def tensors(self) -> dict[str, Tensor]:
        """Return all that is remembered, by name; nothing writes to it later."""
        kept = {"count": torch.tensor(self.count), "rate": torch.tensor(self.rate)}
        if self.mean is not None and self.square is not None:
            kept |= {"mean": self.mean.clone(), "square": self.square.clone()}
        return kept

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember what `tensors` gave. Raises KeyError when some of it is missing."""
        self.count, self.rate = int(tensors["count"]), float(tensors["rate"])
        self.mean = self.square = None
        if self.count:
            self.mean = tensors["mean"].clone()
            self.square = tensors["square"].clone()


def build_optimizer(
    settings: JobSettings, size: tuple[int, int], history: int
) -> Optimizer:
    """Return the optimiser that the settings ask for, for a (width, height)."""
    if settings.optimizer == "adam":
        return Adam()
    if settings.preconditioner == "none":
        return LBFGS(history)
    return LBFGS(history, Preconditioner(*size))


def rms(move: Tensor) -> Tensor:
    """Return the root mean square: by how much a move changes a value."""
    norm: Tensor = torch.linalg.vector_norm(move)
    return norm / math.sqrt(move.numel())
