"""The loss network over a picture in bands of whole rows, forward and back.

A 3x3 convolution reads one row more on either side than it gives. So layers lag: of
input rows a..b a layer gives a-1..b-1, and remembers what it needs for the next band.
Nothing is computed twice, no seam can be seen, and memory is bounded by a band's.

The gradient of a 3x3 convolution is a 3x3 convolution with the kernel turned. Taken
from the bottom up, its lag undoes the first one: each band's gradient is that of the
very rows whose features the forward pass gave with that band.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from stylequeue_worker.engine.network import Layer, LossNetwork

# What a layer's losses add to the gradient at its features, by layer's name.
Pull = Callable[[str, Tensor], Tensor | None]


# How much smaller a mean of four is than their maximum, before each convolution that a
# pooling precedes: over the photographs of calibration.py, with the bundled weights.
MEANS_TO_MAXIMA = {"conv2_1": 1.26, "conv3_1": 1.74, "conv4_1": 1.51, "conv5_1": 2.19}


class Pooling(Protocol):
    """Shrinks features (1, C, h, w) by two, and takes a gradient back."""

    def forward(self, features: Tensor, layer: str) -> Tensor:
        """Return the pooled features before `layer`, not yet through their ReLU."""
        ...

    def backward(
        self, gradient: Tensor, features: Tensor, layer: str, out: Tensor
    ) -> None:
        """Write the gradient at the features before their ReLU."""
        ...


class MaxPooling:
    """Keeps the largest of four; which one is found again on the way back."""

    def forward(self, features: Tensor, layer: str) -> Tensor:
        """Return the pooled features; the largest of four commutes with ReLU."""
        return F.max_pool2d(features, 2)

    def backward(
        self, gradient: Tensor, features: Tensor, layer: str, out: Tensor
    ) -> None:
        """Write the gradient, all of it at the largest of four."""
        # The places are eight bytes each: finding them again is cheaper than memory.
        largest, places = F.max_pool2d(features, 2, return_indices=True)
        # Here the ReLU has a quarter of the places to look at.
        through_relu(gradient, largest, out=gradient)
        torch.ops.aten.max_pool2d_with_indices_backward.grad_input(
            *(gradient, features, [2, 2], [2, 2], [0, 0], [1, 1], False, places),
            grad_input=out,
        )


class AveragePooling:
    """Takes the mean of four, scaled, so that features keep the size of the trained.

    After Gatys et al. (2016), section 2, who found it smoother; the scale is ours.
    """

    def forward(self, features: Tensor, layer: str) -> Tensor:
        """Return the scaled mean of four after ReLU."""
        return F.avg_pool2d(F.relu(features), 2) * MEANS_TO_MAXIMA[layer]

    def backward(
        self, gradient: Tensor, features: Tensor, layer: str, out: Tensor
    ) -> None:
        """Write the gradient, a scaled quarter of it at each of four."""
        scaled = gradient * MEANS_TO_MAXIMA[layer]
        torch.ops.aten.avg_pool2d_backward.grad_input(
            *(scaled, features, [2, 2], [2, 2], [0, 0], False, True, None),
            grad_input=out,
        )
        through_relu(out, features, out=out)


POOLINGS: dict[str, Pooling] = {"max": MaxPooling(), "average": AveragePooling()}


class Bands:
    """Which rows of each layer belong to which band of a picture.

    `picture` holds where bands begin in the picture, and where the last ends;
    `before[l]` and `after[l]` hold the same for the rows that the network's l-th
    convolution reads and gives.
    """

    def __init__(self, layers: Sequence[Layer], height: int, rows: int) -> None:
        self.picture = [*range(0, height, rows), height]
        self.count = len(self.picture) - 1
        self.before: list[list[int]] = []
        self.after: list[list[int]] = []
        edges = self.picture
        for layer, following in zip(layers, [*layers[1:], None], strict=True):
            if layer.pooled:
                edges = [edge // 2 for edge in edges]
            self.before.append(edges)
            inner = [max(0, edge - 1) for edge in edges[1:-1]]
            if following is not None and following.pooled:
                # No window of the pooling may lie across two bands.
                inner = [edge - edge % 2 for edge in inner]
            edges = [0, *inner, edges[-1]]
            self.after.append(edges)


class Forward:
    """Reads a picture's bands from the top down."""

    def __init__(
        self, network: LossNetwork, layers: Sequence[str], pooling: str, bands: Bands
    ) -> None:
        self._layers = network.up_to(layers)
        self._read = set(layers)
        self._mean = network.mean
        self._pooling = POOLINGS[pooling]
        self._bands = bands
        # By layer: the rows it still needs, down to those of the band read last.
        self.tails: list[Tensor | None] = [None] * len(self._layers)

    def band(self, picture: Tensor, number: int) -> list[Tensor]:
        """Return the features of the band that follows the one read last.

        By convolution: what it gives, or, where that is not among the layers read,
        what its ReLU makes of it.
        """
        top, bottom = self._bands.picture[number : number + 2]
        # Zeros pad the centred picture, as in training, so the mean cannot be folded
        # into the first bias.
        x = picture[..., top:bottom, :] - self._mean
        features: list[Tensor] = []
        for index, layer in enumerate(self._layers):
            if layer.pooled:
                x = self._pooled(x, layer.name)
            x = self._convolved(index, x, number)
            if layer.name not in self._read:
                x.relu_()
            features.append(x)
        return features

    def _pooled(self, x: Tensor, layer: str) -> Tensor:
        if x.shape[-2] < 2:
            return x.new_empty(*x.shape[:2], 0, x.shape[-1] // 2)
        return self._pooling.forward(x, layer)

    def _convolved(self, index: int, x: Tensor, number: int) -> Tensor:
        layer, after = self._layers[index], self._bands.after[index]
        last = number == self._bands.count - 1
        tail = self.tails[index]
        if tail is None:
            tail = _zeros(1, x, layer.weight)
        above, height = tail.shape[-2], x.shape[-2]
        padded = _empty(above + height + last, x, layer.weight)
        padded[..., :above, :] = tail
        inside = padded[..., above : above + height, :]
        # The ReLU has to write somewhere: it writes where the padding is.
        if index == 0:
            inside.copy_(x)
        else:
            torch.clamp_min(x, 0, out=inside)
        if last:
            padded[..., -1, :] = 0
        count = after[number + 1] - after[number]
        self.tails[index] = padded[..., count:, :].clone()
        return _convolve(padded[..., : count + 2, :], layer.weight, layer.bias)


class Backward:
    """Takes the gradient back, from the bottom up."""

    def __init__(
        self, network: LossNetwork, layers: Sequence[str], pooling: str, bands: Bands
    ) -> None:
        self._layers = network.up_to(layers)
        self._pooling = POOLINGS[pooling]
        self._bands = bands
        # By layer: the gradient's rows that the band above still needs.
        self._heads: list[Tensor | None] = [None] * len(self._layers)

    def band(self, features: Sequence[Tensor], number: int, pull: Pull) -> Tensor:
        """Return the gradient at the picture's rows of the band above the last one."""
        back: Tensor | None = None
        for index in reversed(range(len(self._layers))):
            padded, inside = self._room(index, features[index], number)
            # Nothing is written twice: it comes to lie where the padding is.
            self._take_through(index, back, features[index], inside)
            if inside.numel():
                self._add_pulls(self._layers[index], features[index], pull, inside)
            back = self._convolved(index, padded, number)
        assert back is not None
        return back

    def _room(self, index: int, features: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return rows for the gradient at what a convolution gives, and their middle.

        Around the middle, which is of the features' shape, are the rows remembered
        from the band below, and zeros where the picture ends.
        """
        layer, head = self._layers[index], self._heads[index]
        if head is None:
            head = _zeros(1, features, layer.turned)
        above, height = int(self._bands.before[index][number] == 0), features.shape[-2]
        padded = _empty(above + height + head.shape[-2], features, layer.turned)
        padded[..., :above, :] = 0
        padded[..., above + height :, :] = head
        return padded, padded[..., above : above + height, :]

    def _take_through(
        self, index: int, back: Tensor | None, features: Tensor, out: Tensor
    ) -> None:
        """Write the gradient at what a convolution gives, from that at its next one."""
        if back is None or not back.numel():
            out.zero_()
        elif (following := self._layers[index + 1]).pooled:
            self._pooling.backward(back, features, following.name, out)
        else:
            through_relu(back, features, out=out)

    def _add_pulls(
        self, layer: Layer, features: Tensor, pull: Pull, out: Tensor
    ) -> None:
        """Add what the losses want of what a convolution gives."""
        at_conv, at_relu = pull(layer.name, features), pull(layer.relu, features)
        if at_conv is not None:
            out.add_(at_conv)
        if at_relu is not None:
            out.add_(through_relu(at_relu, features, out=at_relu))

    def _convolved(self, index: int, padded: Tensor, number: int) -> Tensor:
        """Return the gradient at what a convolution reads; remember what is needed."""
        after, before = self._bands.after[index], self._bands.before[index]
        start = before[number] - 1 - after[number] + int(before[number] == 0)
        self._heads[index] = padded[..., : start + 2, :].clone()
        count = before[number + 1] - before[number]
        rows = padded[..., start : start + count + 2, :]
        return _convolve(rows, self._layers[index].turned)


def through_relu(gradient: Tensor, features: Tensor, out: Tensor) -> Tensor:
    """Write the gradient before a ReLU, given that after it, to `out`; return that."""
    torch.ops.aten.threshold_backward.grad_input(gradient, features, 0, grad_input=out)
    return out


def _convolve(padded: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve rows that have one row more above and below."""
    if padded.shape[-2] < 3:
        return padded.new_empty(1, len(weight), 0, padded.shape[-1])
    return F.conv2d(padded, weight, bias, padding=(0, 1))


def _empty(rows: int, like: Tensor, weight: Tensor) -> Tensor:
    return torch.empty(
        (1, weight.shape[1], rows, like.shape[-1]),
        dtype=weight.dtype,
        device=weight.device,
        memory_format=torch.channels_last,
    )


def _zeros(rows: int, like: Tensor, weight: Tensor) -> Tensor:
    return _empty(rows, like, weight).zero_()
