"""A VGG-19 of few channels with random weights, and pictures for it."""

import torch
from torch import Tensor

from stylequeue_shared.errors import NotFound
from stylequeue_shared.job_settings import JobSettings, complete_settings
from stylequeue_worker.calibration import convolutions, measure
from stylequeue_worker.engine.network import LossNetwork, build_network
from stylequeue_worker.engine.state import decode, encode, encode_part
from stylequeue_worker.weights import Weights

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.45), (0.25, 0.3, 0.2)


def tiny_weights(channels: int = 5) -> Weights:
    generator = torch.Generator().manual_seed(7)
    state, incoming = {}, 3
    for number, (_, index) in enumerate(convolutions()):
        outgoing = channels + number % 3
        weight = torch.randn(outgoing, incoming, 3, 3, generator=generator)
        state[f"features.{index}.weight"] = weight * (2 / (9 * incoming)) ** 0.5
        bias = 0.1 * torch.randn(outgoing, generator=generator)
        state[f"features.{index}.bias"] = bias
        incoming = outgoing
    means = measure(state, MEAN, STD, [picture(32, 32, seed=1)])
    return Weights("tiny", "0" * 64, state, MEAN, STD, means)


def tiny_network(dtype: torch.dtype = torch.float32) -> LossNetwork:
    return build_network(tiny_weights(), CPU, dtype)


def picture(
    height: int, width: int, seed: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, height, width, generator=generator).to(dtype)


def settings(styles: int = 1, **given: object) -> JobSettings:
    return complete_settings({"seed": 3, "steps": 5, **given}, styles=styles)


def saved(state):
    """Return a state as it is stored: its record, and the files of its parts."""
    encoded = encode(state)
    return encoded.record, {
        name: encode_part(tensor) for name, tensor in encoded.parts.items()
    }


def loaded(stored):
    """Read what `saved` gave."""
    record, parts = stored

    def part(name):
        if name not in parts:
            raise NotFound(f"no such file: {name}")
        return parts[name]

    return decode(record, part)
