"""VGG-19 as a loss network: frozen, its features divided by their mean activation."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torchvision.models.vgg import make_layers

from stylequeue_shared.layers import LAYERS, block_of
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


class LossNetwork(nn.Module):
    """The convolutions of VGG-19, frozen; bands.py runs a picture through them."""

    mean: Tensor

    def __init__(self, features: nn.Sequential, mean: Tensor) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("mean", mean)
        self._layers: list[Layer] = []
        self.requires_grad_(False)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are, and so the pictures have to be."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of weights and features."""
        return next(self.parameters()).dtype

    def up_to(self, layers: Sequence[str]) -> list[Layer]:
        """Return the convolutions down to the deepest of `layers`, and no further."""
        deepest = max(map(LAYERS.index, layers))
        # Made when they are first asked for: most jobs need few of the turned kernels.
        for name, index in convolutions()[len(self._layers) : deepest // 2 + 1]:
            self._layers.append(self._layer(index, name))
        return self._layers[: deepest // 2 + 1]

    def lowered(self) -> "LossNetwork":
        """Return the same network in bfloat16; its mean stays what it is."""
        lower = copy.deepcopy(self.features).to(torch.bfloat16)
        return LossNetwork(lower, self.mean)

    def _layer(self, index: int, name: str) -> Layer:
        module = self.features[index]
        assert isinstance(module, nn.Conv2d)
        assert module.bias is not None
        turned = module.weight.flip(2, 3).transpose(0, 1)
        return Layer(
            name,
            module.weight,
            module.bias,
            turned.contiguous(memory_format=torch.channels_last),
        )


def build_network(
    weights: Weights, device: torch.device, dtype: torch.dtype = torch.float32
) -> LossNetwork:
    """Build the network with the calibration folded into its weights.

    ReLU and pooling commute with positive factors, so with c the mean activations,
        W'_l = W_l c_(l-1) / c_l    and    b'_l = b_l / c_l
    give every feature of the original network, divided by its layer's c_l.
    The numbers of channels are those of the weights; a test passes few.
    """
    state: dict[str, Tensor] = {}
    # The pictures' deviations go into the first weights in the same way.
    incoming = torch.tensor(weights.std, dtype=torch.float64).reciprocal()
    for name, index in convolutions():
        outgoing = weights.means[name]
        scale = (incoming / outgoing).view(1, -1, 1, 1)
        weight = weights.state[f"features.{index}.weight"].double()
        bias = weights.state[f"features.{index}.bias"].double()
        state[f"{index}.weight"] = (weight * scale).to(dtype)
        state[f"{index}.bias"] = (bias / outgoing).to(dtype)
        incoming = torch.tensor([outgoing], dtype=torch.float64)
    # On the meta device nothing is initialised; all tensors are assigned.
    with torch.device("meta"):
        features = make_layers(_configuration(state))
    features.load_state_dict(state, assign=True)
    mean = torch.tensor(weights.mean, dtype=torch.float64).view(1, 3, 1, 1)
    network = LossNetwork(features, mean).to(device, dtype)
    return network.to(memory_format=torch.channels_last)


def _configuration(state: dict[str, Tensor]) -> list[str | int]:
    """Return torchvision's description of VGG-19, with the weights' channels."""
    configuration: list[str | int] = []
    for _, block in groupby(convolutions(), lambda named: block_of(named[0])):
        configuration += [len(state[f"{index}.bias"]) for _, index in block]
        configuration.append("M")
    return configuration
