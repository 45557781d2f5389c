"""Whether an optimisation is well: what is not finite, what stalls, what is flat."""

import math
from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from stylequeue_shared.errors import NumericalError

# Evaluations in a row that may give no finite number.
BAD_AT_MOST = 3
# Steps without a lower loss after which what was learnt is thought to mislead.
STALLED_STEPS = 25
# A run is flat when so many steps have lowered the loss by less than this share.
FLAT_STEPS, FLAT_SHARE = 50, 0.002

NAMES = ("style loss", "content loss", "total variation", "gradient")


class Watch:
    """Remembers the best picture so far, and how the loss has been falling."""

    def __init__(self) -> None:
        self.best: Tensor | None = None
        # Those of the best picture.
        self.losses = (0.0, 0.0, 0.0)
        # The lowest so far, of the kind that is going on.
        self.loss = math.inf
        self._bad = 0
        self._since = 0
        # The lowest loss so far, after each of the last steps.
        self._lowest: deque[float] = deque(maxlen=FLAT_STEPS + 1)

    def is_well(self, number: int, values: tuple[float, ...]) -> bool:
        """Return whether losses and gradient of a step are finite.

        Raises NumericalError when too many were not, or none ever was.
        """
        found = [
            f"the {name} is not finite ({value})"
            for name, value in zip(NAMES, values, strict=True)
            if not math.isfinite(value)
        ]
        self._bad = self._bad + 1 if found else 0
        if found and (self.best is None or self._bad > BAD_AT_MOST):
            tries = "" if self.best is None else f" for the {self._bad}th time"
            raise NumericalError(f"step {number}: {found[0]}{tries}")
        return not found

    def see(self, picture: Tensor, losses: tuple[float, float, float]) -> None:
        """Note a picture and its losses, which are finite."""
        if sum(losses) < self.loss:
            self.best, self.losses, self._since = picture, losses, 0
            self.loss = sum(losses)
        else:
            self._since += 1
        self._lowest.append(self.loss)

    def has_stalled(self) -> bool:
        """Return whether to start again from the best picture; ask once a step."""
        if self._since < STALLED_STEPS:
            return False
        self._since = 0
        return True

    @property
    def is_flat(self) -> bool:
        """Whether the loss hardly falls any more."""
        if len(self._lowest) <= FLAT_STEPS:
            return False
        # Equality counts as flat, since a loss of 0 cannot fall any further.
        return self._lowest[0] - self._lowest[-1] <= FLAT_SHARE * self._lowest[0]

    def forget_losses(self) -> None:
        """Compare no later loss with those so far: it is of another kind."""
        self.loss = math.inf
        self._lowest.clear()

    def tensors(self) -> dict[str, Tensor]:
        """Return all that is remembered, by name; ask after a good step."""
        assert self.best is not None
        numbers = [*self.losses, self.loss, self._bad, self._since, *self._lowest]
        return {
            "numbers": torch.tensor(numbers, dtype=torch.float64),
            "best": self.best,
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember what `tensors` gave. Raises KeyError when some of it is missing."""
        style, content, tv, loss, bad, since, *lowest = tensors["numbers"].tolist()
        self.losses, self.loss = (style, content, tv), loss
        self._bad, self._since = int(bad), int(since)
        self._lowest = deque(lowest, maxlen=FLAT_STEPS + 1)
        self.best = tensors["best"]
