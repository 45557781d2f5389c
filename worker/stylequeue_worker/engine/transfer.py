"""Style transfer as an iterator of steps."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stylequeue_shared.errors import BadState, NothingFits
from stylequeue_shared.job_settings import JobSettings
from stylequeue_shared.phases import Phase, phases
from stylequeue_shared.plans import Plan, plan, smaller
from stylequeue_worker.engine.network import LossNetwork
from stylequeue_worker.engine.objective import Losses, Objective
from stylequeue_worker.engine.optimizers import Optimizer, build_optimizer
from stylequeue_worker.engine.state import DAMAGE, State
from stylequeue_worker.engine.watch import Watch
from stylequeue_worker.memory import give_back_freed_memory

PICTURE, OPTIMIZER, WATCH = "picture", "optimizer.", "watch."


@dataclass(frozen=True)
class Step:
    """One evaluation of loss and gradient, and the update that followed.

    The losses are those of the picture before the update; `image` (1, 3, H, W) in 0..1
    is the one after it, on the network's device. It is never written to again, so it
    may be kept; keeping it keeps its memory. `best` is the picture of the lowest loss
    so far at this size. `stop_reason` is that of the last step. `left` is what is still
    to do, in steps of this one's size.
    """

    number: int
    style_loss: float
    content_loss: float
    image: Tensor
    tv_loss: float = 0.0
    best: Tensor | None = None
    plan: Plan | None = None
    stop_reason: str | None = None
    left: float | None = None
    run: "Run | None" = None

    @property
    def loss(self) -> float:
        """The objective: the sum of the weighted losses."""
        return self.style_loss + self.content_loss + self.tv_loss

    def state(self) -> State:
        """Return where the run stands. Ask before the next step is asked for.

        Raises BadState while the run goes on to another size or precision.
        """
        assert self.run is not None
        return self.run.state()


def transfer(
    network: LossNetwork,
    content: Tensor,
    styles: Sequence[Tensor],
    settings: JobSettings,
    state: State | None = None,
    *,
    budget: int | None = None,
    fast_low: bool = False,
    at_border: Callable[[], None] = lambda: None,
) -> Iterator[Step]:
    """Yield the steps up to `settings.steps`, each computed only when it is asked for.

    Content and styles are pictures (1, 3, h, w) in 0..1 on any device; the result is
    of the content's size. With the state of an earlier run of the same job it goes on
    after that state's step, as that run would have. `budget` is the memory in bytes
    that the process may take, `fast_low` whether the device is fast in bfloat16.
    `at_border` is called many times in a step of a large picture; what it raises comes
    out and ends the run. Its last step can still be asked for its state, unless the
    run had gone on to another size or precision.
    Raises NothingFits if the budget is too small, NumericalError if losses or gradient
    stay without finite values, and BadState when the state is not one of this job.
    """
    run = Run(network, content, styles, settings, budget, fast_low, at_border)
    # The run lets go of them when it has read them for the last time.
    del content, styles
    if state is not None:
        run.restore(state)
    yield from run.steps()


class Run:
    """One optimisation, step by step."""

    def __init__(
        self,
        network: LossNetwork,
        content: Tensor,
        styles: Sequence[Tensor],
        settings: JobSettings,
        budget: int | None,
        fast_low: bool,
        at_border: Callable[[], None],
    ) -> None:
        self._network = network
        self._content = content.to(network.device, network.dtype)
        self._styles = [style.to(network.device, network.dtype) for style in styles]
        self._settings = settings
        self._least_side = settings.minimum_side
        self._budget = budget
        self._at_border = at_border
        self._size = (content.shape[-1], content.shape[-2])
        self._phases = phases(settings, self._size, fast_low)
        self._done = 0
        self._is_between = False
        self._picture: Tensor | None = None
        self._watch = Watch()
        # Of the phase that is going on:
        self._phase: Phase | None = None
        self._plan: Plan
        self._objective: Objective | None = None
        self._optimizer: Optimizer

    def steps(self) -> Iterator[Step]:
        """Yield the steps that are left."""
        for phase in self._phases:
            while self._done < phase.last:
                if self._phase is not phase:
                    self._is_between = True
                    self._enter(phase)
                step = self._step(self._done + 1)
                self._is_between = False
                self._done += 1
                yield step
                if step.stop_reason is not None:
                    return

    def state(self) -> State:
        """Return where the run stands. Raises BadState between two phases."""
        if self._is_between:
            raise BadState(f"step {self._done} has gone into another size or precision")
        assert self._picture is not None
        tensors = {PICTURE: self._picture}
        for prefix, part in ((OPTIMIZER, self._optimizer), (WATCH, self._watch)):
            tensors |= {f"{prefix}{name}": one for name, one in part.tensors().items()}
        return State(self._done, tensors, self._plan)

    def restore(self, state: State) -> None:
        """Go on from `state`. Raises BadState when it is not one of this job."""
        phase = next((p for p in self._phases if p.first <= state.step <= p.last), None)
        if phase is None:
            raise BadState(
                f"the state is of step {state.step}, "
                f"this job has {self._settings.steps}"
            )
        device = self._network.device
        tensors = {name: one.to(device) for name, one in state.tensors.items()}
        self._enter(phase, state.plan)
        _check_shapes(tensors, self._at(phase, self._content))
        try:
            self._picture = tensors[PICTURE]
            self._optimizer.restore(_part(tensors, OPTIMIZER))
            self._watch.restore(_part(tensors, WATCH))
        except KeyError as missing:
            raise BadState(
                f"the state has no {missing}, which this job needs"
            ) from None
        except DAMAGE as error:
            raise BadState(f"the state is damaged ({error})") from None
        self._done = state.step

    def _enter(self, phase: Phase, planned: Plan | None = None) -> None:
        """Make ready what is used until the phase ends."""
        size = _shrunk_size(self._size, phase.shrunk)
        content = self._at(phase, self._content)
        styles = [self._at(phase, style) for style in self._styles]
        if self._phase is None or self._phase.shrunk != phase.shrunk:
            self._plan = planned or self._planned(size)
            self._picture = self._first_picture(content, styles)
            self._optimizer = build_optimizer(self._settings, size, self._plan.history)
            self._watch = Watch()
        else:
            # Losses of another precision.
            self._optimizer.forget_losses()
            self._watch.forget_losses()
        self._phase = phase
        # Built when it is needed; the one before goes first, for both might not fit.
        self._objective = None

    def _built_objective(self) -> Objective:
        assert self._phase is not None
        network = self._network.lowered() if self._phase.low else self._network
        built = Objective(
            network,
            self._at(self._phase, self._content),
            [self._at(self._phase, style) for style in self._styles],
            self._settings,
            self._plan,
            self._at_border,
        )
        if self._phase is self._phases[-1]:
            # Read for the last time: large pictures need the room.
            self._content, self._styles = self._content[..., :0, :0].clone(), []
        return built

    def _at(self, phase: Phase, picture: Tensor) -> Tensor:
        """Return a picture as small as the phase wants it, and the network can take."""
        times = phase.shrunk
        # A style may be thinner than the content, from which the scales follow.
        while times > 1 and min(picture.shape[-2:]) // times < self._least_side:
            times //= 2
        return _shrunk(picture, times)

    def _planned(self, size: tuple[int, int]) -> Plan:
        on_gpu = self._network.device.type == "cuda"
        found = plan(self._settings, size, self._budget, gpu=on_gpu)
        if found is None:
            raise NothingFits(
                f"image_size: {max(size)} does not fit into the {self._budget} bytes "
                "that this worker may take (STYLEQUEUE_MEMORY_MB)",
                field="image_size",
            )
        return found

    def _first_picture(self, content: Tensor, styles: Sequence[Tensor]) -> Tensor:
        """Return what the first step of a scale evaluates."""
        if self._picture is not None:
            return resized(self._picture, content.shape[-2:])
        return first_picture(content, styles, self._settings)

    def _step(self, number: int) -> Step:
        """Evaluate and update once."""
        assert self._picture is not None
        losses, gradient = self._evaluated()
        numbers = _numbers(losses, gradient)
        style, content, tv = numbers[:3]
        if self._watch.is_well(number, numbers):
            self._watch.see(self._picture, (style, content, tv))
            self._picture = self._moved(gradient, style + content + tv)
            back = self._watch.has_stalled()
        else:
            style, content, tv = self._watch.losses
            back = True
        if back:
            # Back to the last good picture, in smaller steps.
            assert self._watch.best is not None
            self._picture = self._watch.best
            self._optimizer.restart()
        return Step(
            number=number,
            style_loss=style,
            content_loss=content,
            tv_loss=tv,
            image=self._picture,
            best=self._watch.best,
            plan=self._plan,
            stop_reason=self._stop_reason(number),
            left=self._left(number),
            run=self,
        )

    def _left(self, number: int) -> float:
        """Return how many steps of this size would cost as much as those to come."""
        assert self._phase is not None
        here = self._phase.shrunk
        return sum(
            (phase.last - max(number, phase.first - 1)) * (here / phase.shrunk) ** 2
            for phase in self._phases
            if phase.last > number
        )

    def _stop_reason(self, number: int) -> str | None:
        if number == self._settings.steps:
            return "completed"
        in_last_phase = self._phase is self._phases[-1]
        if self._settings.stop_when_flat and in_last_phase and self._watch.is_flat:
            return "flat"
        return None

    def _evaluated(self) -> tuple[Losses, Tensor]:
        """Return losses and gradient; where memory runs out, with a smaller plan."""
        while True:
            assert self._picture is not None
            try:
                if self._objective is None:
                    self._objective = self._built_objective()
                found = self._objective.gradient(self._picture)
                if not self._plan.holds_all(self._picture.shape[-2]):
                    # The update needs the room: the budget is for one of both.
                    give_back_freed_memory()
                return found
            except (MemoryError, RuntimeError) as error:
                fewer = self._smaller_after(error)
            # Outside of the handler, which holds on to the frames of the error.
            self._spend(fewer)

    def _moved(self, gradient: Tensor, loss: float) -> Tensor:
        """Return the next picture; where memory runs out, with a smaller plan."""
        while True:
            assert self._picture is not None
            try:
                return self._optimizer.step(self._picture, gradient, loss)
            except (MemoryError, RuntimeError) as error:
                fewer = self._smaller_after(error)
            self._spend(fewer)
            # It may have stopped half way through what it remembers.
            self._optimizer.restart()

    def _smaller_after(self, error: Exception) -> Plan:
        """Return the plan to go on with. Raises `error` if that is of no help."""
        assert self._phase is not None
        size = _shrunk_size(self._size, self._phase.shrunk)
        found = smaller(self._settings, size, self._plan)
        if not ran_out_of_memory(error) or found is None:
            raise error
        return found

    def _spend(self, found: Plan) -> None:
        """Work with a smaller plan from now on."""
        self._plan = found
        self._optimizer.shorten(found.history)
        if self._objective is not None:
            self._objective.spend(found)
        if self._network.device.type == "cuda":
            torch.cuda.empty_cache()


# How torch says it where it has no type of its own for it: on CPUs, in the libraries
# for NVIDIA's cards, and where C++ itself ran out.
DEVICE_ERRORS = ("CUDA error", "cuDNN error", "CUBLAS_STATUS_", "CUDNN_STATUS_")
OUT_OF_MEMORY = ("can't allocate memory", "STATUS_ALLOC_FAILED", "std::bad_alloc")


def ran_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that there was no memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        text in str(error) for text in OUT_OF_MEMORY
    )


def is_of_the_device(error: Exception) -> bool:
    """Return whether an error came from a GPU, its driver or its libraries."""
    return isinstance(error, torch.AcceleratorError) or any(
        text in str(error) for text in DEVICE_ERRORS
    )


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


def resized(picture: Tensor, size: Sequence[int]) -> Tensor:
    """Return a picture (1, 3, h, w) at another size, in 0..1."""
    return F.interpolate(
        picture, tuple(size), mode="bicubic", antialias=True, align_corners=False
    ).clamp_(0, 1)


def _shrunk(picture: Tensor, times: int) -> Tensor:
    if times == 1:
        return picture
    width, height = _shrunk_size((picture.shape[-1], picture.shape[-2]), times)
    return resized(picture, (height, width))


def _shrunk_size(size: tuple[int, int], times: int) -> tuple[int, int]:
    return max(1, size[0] // times), max(1, size[1] // times)


def _covering(style: Tensor, content: Tensor) -> Tensor:
    """Return the middle of the style, cut to the content's aspect, at its size."""
    height, width = content.shape[-2:]
    scale = min(style.shape[-2] / height, style.shape[-1] / width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (style.shape[-2] - rows) // 2, (style.shape[-1] - columns) // 2
    return resized(style[..., top : top + rows, left : left + columns], (height, width))


def _check_shapes(tensors: dict[str, Tensor], picture: Tensor) -> None:
    """Raise BadState for a tensor that is none of a run of such a picture."""
    flat = picture.reshape(-1)
    for name, found in tensors.items():
        part = name.rpartition(".")[2]
        if part == "numbers":
            continue
        if part in ("picture", "best", "mean", "square"):
            expected = picture
        elif part in ("s", "y", "move", "gradient", "values"):
            expected = flat
        elif found.dim():
            raise BadState(f"the state's {name} is {tuple(found.shape)}, no number")
        else:
            continue
        if (found.shape, found.dtype) != (expected.shape, expected.dtype):
            raise BadState(
                f"the state's {name} is {tuple(found.shape)} of {found.dtype}, "
                f"this job's {tuple(expected.shape)} of {expected.dtype}"
            )


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): one
        for name, one in tensors.items()
        if name.startswith(prefix)
    }


def _numbers(losses: Losses, gradient: Tensor) -> tuple[float, ...]:
    """Return the losses, and a number that is finite if the gradient is."""
    # One device sync a step.
    size = torch.linalg.vector_norm(gradient, 1)
    return tuple(torch.stack([*losses, size.to(losses.style)]).tolist())
