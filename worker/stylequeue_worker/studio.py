"""The engine with what it needs at hand: weights, network, device. One per process."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from stylequeue_shared.errors import BadConfiguration
from stylequeue_shared.estimates import Estimate, Speed, estimate
from stylequeue_shared.job_settings import JobSettings
from stylequeue_shared.plans import MB
from stylequeue_shared.settings import Settings
from stylequeue_worker.engine.network import build_network
from stylequeue_worker.engine.state import State
from stylequeue_worker.engine.transfer import Step, ran_out_of_memory, transfer
from stylequeue_worker.memory import keep_freed_memory, total_memory
from stylequeue_worker.pictures import content_tensor, style_tensor, with_histogram_of
from stylequeue_worker.speed import measure
from stylequeue_worker.weights import load_weights

# Of the memory of a GPU or a machine, what its workers may take.
SHARE = 0.7


class Studio:
    """Paints: turns pictures and settings into steps. Loads the network once."""

    def __init__(self, settings: Settings) -> None:
        self._device = _device(settings)
        _make_fast_and_repeatable(self._device)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        weights = load_weights(settings.weights)
        self._network = build_network(weights, self._device)
        self.device_name = _device_name(self._device)
        self.memory_bytes = _memory(self._device)
        self.budget = _budget(settings, self.memory_bytes)
        self._fast_low = _is_fast_in_bfloat16(self._device)
        # Everything that the picture depends on besides its settings.
        self.made_with: Mapping[str, Any] = {
            "stylequeue": version("stylequeue"),
            "weights": weights.digest,
            "torch": torch.__version__,
            "device": self.device_name,
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "bfloat16": self._fast_low,
        }
        del weights
        keep_freed_memory()

    @property
    def on_gpu(self) -> bool:
        """Whether it works on a GPU."""
        return self._device.type == "cuda"

    @cached_property
    def speed(self) -> Speed | None:
        """How fast it is; measured, for a second, when first asked for.

        None when there was no memory for that: others may be on the GPU just now.
        """
        try:
            return measure(self._network, fast_low=self._fast_low)
        except (MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
            return None
        finally:
            self.recover()

    def estimate(
        self,
        content: Image.Image,
        styles: Sequence[Image.Image],
        settings: JobSettings,
    ) -> Estimate | None:
        """Return what painting will take; None: unknown, or there is no room for it."""
        if self.speed is None:
            return None
        sizes = [style.size for style in styles]
        return estimate(
            settings, content.size, sizes, self.budget, self.speed, gpu=self.on_gpu
        )

    def paint(
        self,
        content: Image.Image,
        styles: Sequence[Image.Image],
        settings: JobSettings,
        budget: int | None = None,
        state: State | None = None,
        at_border: Callable[[], None] = lambda: None,
    ) -> Iterator[Step]:
        """Yield a step after each update of the picture, from a state on if given.

        `budget` is the memory that the job may take; left out, this worker's.
        `at_border` is called many times in a long step; what it raises comes out.
        """
        yield from transfer(
            self._network,
            # No names here keep these: the run lets go of them when it has read them.
            *self._read(content, styles, settings),
            settings,
            state,
            budget=budget or self.budget,
            fast_low=self._fast_low,
            at_border=at_border,
        )

    def _read(
        self,
        content: Image.Image,
        styles: Sequence[Image.Image],
        settings: JobSettings,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return content and styles as the engine takes them."""
        start = content_tensor(content, settings)
        size = (start.shape[-1], start.shape[-2])
        examples = [style_tensor(style, settings, size) for style in styles]
        if settings.preserve_colors == "histogram":
            examples = [with_histogram_of(start, example) for example in examples]
        device = self._device
        return start.to(device), [example.to(device) for example in examples]

    def recover(self) -> None:
        """Let go of memory that a failed job may have left behind."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _device(settings: Settings) -> torch.device:
    if settings.device in ("auto", "cpu"):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BadConfiguration(
            "STYLEQUEUE_DEVICE: there is a GPU, but this torch cannot use it (is the "
            "driver too old?); set it to cpu to do without"
        )
    return torch.device("cuda:0")


def _make_fast_and_repeatable(device: torch.device) -> None:
    """Use TF32, and algorithms that give the same bits each time. CPUs do."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        # torch's stubs do not know it.
        torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]
        # Where there is no such algorithm it warns and goes on.
        torch.use_deterministic_algorithms(True, warn_only=True)
        # That has every new tensor filled first: a pass over memory for nothing, since
        # all of each is written before it is read.
        # torch's stubs do not know it either.
        deterministic: Any = torch.utils.deterministic
        deterministic.fill_uninitialized_memory = False


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"CPU, {count} thread{'' if count == 1 else 's'}"


def _is_fast_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def _budget(settings: Settings, memory: int | None) -> int | None:
    """Return how much memory a job may take, in bytes: set, or a share of all.

    Never of what is free now: a job must not give another picture for that.
    """
    if settings.memory_mb is not None:
        return settings.memory_mb * MB
    if memory is None:
        return None
    return round(SHARE * memory / (settings.workers or 1))


def _memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return total_memory()
