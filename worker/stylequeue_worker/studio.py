"""The engine with what it needs at hand: weights, network, device. One per process."""

import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from PIL import Image

from stylequeue_shared.errors import BadConfiguration
from stylequeue_shared.job_settings import JobSettings
from stylequeue_shared.settings import Settings
from stylequeue_worker.engine.network import build_network
from stylequeue_worker.engine.transfer import Step, transfer
from stylequeue_worker.pictures import content_tensor, style_tensor
from stylequeue_worker.weights import load_weights


class Studio:
    """Paints: turns pictures and settings into steps. Loads the network once."""

    def __init__(self, settings: Settings) -> None:
        self._device = _device(settings)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        weights = load_weights(settings.weights)
        self._network = build_network(weights, self._device)
        self.device_name = _device_name(self._device)
        self.memory_bytes = _memory(self._device)
        # Everything that the picture depends on besides its settings.
        self.made_with: Mapping[str, Any] = {
            "stylequeue": version("stylequeue"),
            "weights": weights.digest,
            "torch": torch.__version__,
            "device": self.device_name,
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        }

    def paint(
        self,
        content: Image.Image,
        styles: Sequence[Image.Image],
        settings: JobSettings,
    ) -> Iterator[Step]:
        """Yield a step after each update of the picture."""
        start = content_tensor(content, settings).to(self._device)
        size = (start.shape[-1], start.shape[-2])
        examples = [
            style_tensor(style, settings, size).to(self._device) for style in styles
        ]
        yield from transfer(self._network, start, examples, settings)

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


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def _memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
