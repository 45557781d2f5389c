"""VGG-19 as a loss network: frozen, its features divided by their mean activation."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.vgg import make_layers

from stylequeue_shared.layers import LAYERS, block_of
from stylequeue_worker.calibration import convolutions
from stylequeue_worker.weights import Weights

POOLINGS: Mapping[str, Callable[..., Tensor]] = {
    "max": F.max_pool2d,
    "average": F.avg_pool2d,
}


class LossNetwork(nn.Module):
    """Gives features at any layers; computes nothing past the deepest of them."""

    mean: Tensor

    def __init__(self, features: nn.Sequential, mean: Tensor) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("mean", mean)
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

    def forward(
        self, picture: Tensor, layers: Sequence[str], pooling: str = "max"
    ) -> dict[str, Tensor]:
        """Return the features of a picture (1, 3, H, W) at `layers` (1, C, h, w)."""
        pool = POOLINGS[pooling]
        deepest = max(map(LAYERS.index, layers))
        found: dict[str, Tensor] = {}
        # Zeros pad the centred picture, as in training, so the mean cannot be folded
        # into the first bias.
        x = (picture - self.mean).contiguous(memory_format=torch.channels_last)
        modules = iter(self.features)
        for position, layer in enumerate(LAYERS[: deepest + 1]):
            module = next(modules)
            if isinstance(module, nn.MaxPool2d):
                x = pool(x, 2)
                module = next(modules)
            if isinstance(module, nn.ReLU):
                # In place saves a pass over memory, but would change a layer read.
                x = F.relu(x, inplace=LAYERS[position - 1] not in found)
            else:
                x = module(x)
            if layer in layers:
                found[layer] = x
        return found


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
        state[f"{index}.weight"] = weight * scale
        state[f"{index}.bias"] = bias / outgoing
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
