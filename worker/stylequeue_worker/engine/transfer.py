"""Style transfer as an iterator of steps."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stylequeue_shared.errors import BadState, NumericalError
from stylequeue_shared.job_settings import JobSettings
from stylequeue_worker.engine.network import LossNetwork
from stylequeue_worker.engine.objective import Losses, Objective
from stylequeue_worker.engine.optimizers import Optimizer, build_optimizer
from stylequeue_worker.engine.state import State

PICTURE = "picture"
PREFIX = "optimizer."


@dataclass(frozen=True)
class Step:
    """One evaluation of loss and gradient, and the update that followed.

    The losses are those of the picture before the update; `image` (1, 3, H, W) in 0..1
    is the one after it, on the network's device. It is never written to again, so it
    may be kept; keeping it keeps its memory.
    """

    number: int
    style_loss: float
    content_loss: float
    image: Tensor
    tv_loss: float = 0.0
    optimizer: Optimizer | None = None

    @property
    def loss(self) -> float:
        """The objective: the sum of the weighted losses."""
        return self.style_loss + self.content_loss + self.tv_loss

    def state(self) -> State:
        """Return where the run stands. Ask before the next step is asked for."""
        assert self.optimizer is not None
        remembered = self.optimizer.tensors()
        tensors = {f"{PREFIX}{name}": tensor for name, tensor in remembered.items()}
        return State(self.number, {PICTURE: self.image, **tensors})


def transfer(
    network: LossNetwork,
    content: Tensor,
    styles: Sequence[Tensor],
    settings: JobSettings,
    state: State | None = None,
) -> Iterator[Step]:
    """Yield the steps up to `settings.steps`, each computed only when it is asked for.

    Content and styles are pictures (1, 3, h, w) in 0..1 on any device; the result is
    of the content's size. With the state of an earlier run of the same job it goes on
    after that state's step, as that run would have.
    Raises NumericalError if a loss or gradient is not finite, and BadState when the
    state is not one of this job.
    """
    content = content.to(network.device, network.dtype)
    styles = [style.to(network.device, network.dtype) for style in styles]
    objective = Objective(network, content, styles, settings)
    optimizer = build_optimizer(settings, content.shape[-2] * content.shape[-1])
    if state is None:
        picture, done = first_picture(content, styles, settings), 0
    else:
        picture, done = _restored(optimizer, state, content), state.step
    for number in range(done + 1, settings.steps + 1):
        losses, gradient = objective.gradient(picture)
        style, content_loss, tv = _checked(losses, gradient, number)
        picture = optimizer.step(picture, gradient, style + content_loss + tv)
        yield Step(number, style, content_loss, picture, tv, optimizer)


def first_picture(
    content: Tensor, styles: Sequence[Tensor], settings: JobSettings
) -> Tensor:
    """Return the picture that step 1 evaluates."""
    if settings.init == "content":
        return content.clone()
    if settings.init == "style":
        blend = settings.blend(len(styles))
        return _covering(styles[blend.index(max(blend))], content)
    # Drawn on the CPU, so that a seed means the same picture on every device.
    generator = torch.Generator().manual_seed(settings.seed)
    noise = torch.rand(content.shape, generator=generator)
    return noise.to(content.device, content.dtype)


def _restored(optimizer: Optimizer, state: State, content: Tensor) -> Tensor:
    """Put the state back; return the picture."""
    tensors = {name: one.to(content.device) for name, one in state.tensors.items()}
    remembered = {
        name.removeprefix(PREFIX): one
        for name, one in tensors.items()
        if name.startswith(PREFIX)
    }
    try:
        optimizer.restore(remembered)
        picture = tensors[PICTURE]
    except KeyError as missing:
        raise BadState(f"the state has no {missing}, which this job needs") from None
    if (picture.shape, picture.dtype) != (content.shape, content.dtype):
        raise BadState(
            f"the state's picture is {tuple(picture.shape)} of {picture.dtype}, "
            f"this job's {tuple(content.shape)} of {content.dtype}"
        )
    return picture


def _covering(style: Tensor, content: Tensor) -> Tensor:
    """Return the middle of the style, cut to the content's aspect, at its size."""
    height, width = content.shape[-2:]
    scale = min(style.shape[-2] / height, style.shape[-1] / width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (style.shape[-2] - rows) // 2, (style.shape[-1] - columns) // 2
    middle = style[..., top : top + rows, left : left + columns]
    return F.interpolate(
        middle, (height, width), mode="bicubic", antialias=True, align_corners=False
    ).clamp_(0, 1)


def _checked(losses: Losses, gradient: Tensor, number: int) -> tuple[float, ...]:
    """Return the losses as numbers, all finite as is the gradient."""
    # One device sync a step.
    numbers = torch.stack([*losses, gradient.abs().sum()]).tolist()
    names = ("style loss", "content loss", "total variation", "gradient")
    for name, value in zip(names, numbers, strict=True):
        if not math.isfinite(value):
            raise NumericalError(f"step {number}: the {name} is not finite ({value})")
    return tuple(numbers[:3])
