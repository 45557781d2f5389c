"""VGG-19 as a loss network: frozen, its features divided by their mean activation."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stylequeue_shared.layers import LAYERS
from stylequeue_worker.calibration import convolutions
from stylequeue_worker.weights import Weights


@dataclass(frozen=True)
class Layer:
    """One convolution: kernel (C', C, 3, 3) and bias (C',).

    `turned` (C, C', 3, 3) is the kernel that takes a gradient back.
    """

    name: str
    weight: Tensor
    bias: Tensor
    turned: Tensor

    @property
    def relu(self) -> str:
        """The name of the ReLU that follows."""
        return self.name.replace("conv", "relu")

    @property
    def pooled(self) -> bool:
        """Whether a pooling stands before it."""
        return self.name.endswith("_1") and self.name != "conv1_1"


class LossNetwork:
    """The convolutions of VGG-19, frozen; bands.py runs a picture through them.

    Plain tensors: torchvision's modules would be the same, but importing them takes
    160 MB and a second in every worker.
    """

    def __init__(self, kernels: Sequence[tuple[Tensor, Tensor]], mean: Tensor) -> None:
        self._kernels = [
            (weight.contiguous(memory_format=torch.channels_last), bias)
            for weight, bias in kernels
        ]
        self.mean = mean
        self._layers: list[Layer] = []

    @property
    def device(self) -> torch.device:
        """Where the weights are, and so the pictures have to be."""
        return self.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of weights and features."""
        return self._kernels[0][0].dtype

    def up_to(self, layers: Sequence[str]) -> list[Layer]:
        """Return the convolutions down to the deepest of `layers`, and no further."""
        deepest = max(map(LAYERS.index, layers))
        # Made when they are first asked for: most jobs need few of the turned kernels.
        for number in range(len(self._layers), deepest // 2 + 1):
            weight, bias = self._kernels[number]
            turned = weight.flip(2, 3).transpose(0, 1)
            turned = turned.contiguous(memory_format=torch.channels_last)
            self._layers.append(Layer(LAYERS[2 * number], weight, bias, turned))
        return self._layers[: deepest // 2 + 1]

    def lowered(self) -> "LossNetwork":
        """Return the same network in bfloat16; its mean stays what it is."""
        kernels = [
            (weight.to(torch.bfloat16), bias.to(torch.bfloat16))
            for weight, bias in self._kernels
        ]
        return LossNetwork(kernels, self.mean)


def build_network(
    weights: Weights, device: torch.device, dtype: torch.dtype = torch.float32
) -> LossNetwork:
    """Build the network with the calibration folded into its weights.

    ReLU and pooling commute with positive factors, so with c the mean activations,
        W'_l = W_l c_(l-1) / c_l    and    b'_l = b_l / c_l
    give every feature of the original network, divided by its layer's c_l.
    The numbers of channels are those of the weights; a test passes few.
    """
    kernels: list[tuple[Tensor, Tensor]] = []
    # The pictures' deviations go into the first weights in the same way.
    incoming = torch.tensor(weights.std, dtype=torch.float64).reciprocal()
    for name, index in convolutions():
        outgoing = weights.means[name]
        scale = (incoming / outgoing).view(1, -1, 1, 1)
        weight = weights.state[f"features.{index}.weight"].double()
        bias = weights.state[f"features.{index}.bias"].double()
        weight, bias = weight * scale, bias / outgoing
        kernels.append((weight.to(device, dtype), bias.to(device, dtype)))
        incoming = torch.tensor([outgoing], dtype=torch.float64)
    mean = torch.tensor(weights.mean, dtype=torch.float64).view(1, 3, 1, 1)
    return LossNetwork(kernels, mean.to(device, dtype))
