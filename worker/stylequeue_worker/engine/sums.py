"""Sums over all places of a picture, gathered band by band."""

from collections.abc import Mapping

import torch
from torch import Tensor

# In how many parts a product in half precision is summed.
PARTS = 32


class GramSums:
    """Gathers Gram matrices band by band."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._products: dict[str, Tensor] = {}
        self.places: dict[str, int] = {}

    def add(self, features: Mapping[str, Tensor]) -> None:
        """Add a band's features (1, b, h, d) of some layers."""
        for layer, found in features.items():
            if layer not in self._products:
                channels = found.shape[1]
                self.places[layer] = 0
                self._products[layer] = torch.zeros(
                    (channels, channels), dtype=self._dtype, device=found.device
                )
            if found.numel():
                self._products[layer] += products(found)
                self.places[layer] += found.numel()

    def grams(self) -> dict[str, Tensor]:
        """Return the Gram matrices of all that was added, divided by b c d."""
        return {
            layer: product / self.places[layer]
            for layer, product in self._products.items()
        }


class SquareSums:
    """Gathers squared distances band by band."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._sums: dict[str, Tensor] = {}
        self.places: dict[str, int] = {}

    def add(
        self, features: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> None:
        """Add a band's distance from the targets, by layer."""
        for layer, target in targets.items():
            off = features[layer] - target
            # At each place first: on CPUs a norm adds one by one, and of millions
            # that leaves four digits. A sum adds halves.
            norms = torch.linalg.vector_norm(off, dim=1, dtype=self._dtype)
            self._sums[layer] = self._sums.get(layer, 0) + norms.square().sum()
            self.places[layer] = self.places.get(layer, 0) + target.numel()

    def means(self) -> Tensor:
        """Return the mean squared distance of each layer."""
        return torch.stack(
            [total / self.places[layer] for layer, total in self._sums.items()]
        )


def products(features: Tensor) -> Tensor:
    """Return the sum over all places of features (1, b, c, d) times themselves, (b, b).

    On CPUs it is asked for as the gradient of a 1 x 1 convolution's weights, which
    oneDNN computes at twice the speed of MKL's product on AMD.
    In half precision a product is rounded to its eight bits: many small ones, summed
    in single precision, are eight times closer than one.
    """
    channels = features.shape[1]
    flat = features.permute(0, 2, 3, 1).reshape(-1, channels)
    if features.dtype.itemsize == 2:
        whole = len(flat) // PARTS * PARTS
        parts = flat[:whole].view(PARTS, -1, channels)
        rest = flat[whole:]
        total = torch.bmm(parts.mT, parts).sum(0, dtype=torch.float32)
        return total + (rest.mT @ rest).float()
    if features.is_cpu and features.dtype == torch.float32:
        of_weights: Tensor = torch.ops.aten.convolution_backward(
            *(features, features, features.new_empty(channels, channels, 1, 1), None),
            *([1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]),
        )[1]
        return of_weights.view(channels, channels)
    return flat.mT @ flat
