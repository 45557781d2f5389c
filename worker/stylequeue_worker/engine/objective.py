"""What a picture is to minimise.

    L(x) =   content_weight * sum_l mse(F_l(x), F_l(content))
           + style_weight * sum_s blend_s sum_l mse(G_l(x), G_l(style_s))
           + tv_weight * tv(x)

    F_l(x)   features of layer l, (a, b, c, d): a = 1 picture, b channels, c x d places
    G_l(x)   F F^T / (a b c d), with F as (a b, c d): the Gram matrix, (b, b)
    mse      mean of squared differences
    tv(x)    mean squared difference of vertical plus that of horizontal neighbours

after Gatys, Ecker, Bethge, Image Style Transfer Using Convolutional Neural Networks
(CVPR 2016). Departures: they divide the content loss by 2 and the style loss by
4 b^2 (c d)^2 and by the number of layers; here all are means, as in the textbook form
that PyTorch's tutorial made common. The features are normalised: see network.py.

The gradient is by hand, since a Gram matrix is a sum over all places: one pass over
bands of the picture gathers the sums, a second takes each band's gradient back. With
T_s the targets, t the content's features, and all of G and T_s symmetric,

    at F_l   4 / (b^2 a b c d) style_weight sum_s blend_s (G_l - T_s) F_l
           + 2 / (a b c d) content_weight (F_l - t_l)

which is one product for each Gram matrix and one for its gradient.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stylequeue_shared.job_settings import JobSettings
from stylequeue_shared.layers import LAYERS
from stylequeue_shared.plans import Plan, band_rows
from stylequeue_worker.engine.bands import Backward, Bands, Forward
from stylequeue_worker.engine.network import LossNetwork
from stylequeue_worker.engine.sums import GramSums, SquareSums


class Losses(NamedTuple):
    """The weighted terms of the objective, each a tensor of one number."""

    style: Tensor
    content: Tensor
    tv: Tensor


class Objective:
    """The objective of one job; the targets are computed once, here.

    `at_border` is called before each band; what it raises comes out, and nothing has
    changed.
    """

    def __init__(
        self,
        network: LossNetwork,
        content: Tensor,
        styles: Sequence[Tensor],
        settings: JobSettings,
        plan: Plan,
        at_border: Callable[[], None] = lambda: None,
    ) -> None:
        self.network = network
        self.settings = settings
        self.plan = plan
        self.at_border = at_border
        # Sums are kept in the picture's precision, also where the network's is lower.
        self.exact = content.dtype
        self.blend = torch.tensor(
            settings.blend(len(styles)), dtype=self.exact, device=network.device
        ).view(-1, 1, 1)
        self.content_targets = self._content_targets(content)
        grams = [self._grams(style) for style in styles]
        self.style_targets = {
            layer: torch.stack([of_style[layer] for of_style in grams])
            for layer in settings.style_layers
        }

    @torch.no_grad()
    def gradient(self, picture: Tensor) -> tuple[Losses, Tensor]:
        """Return the losses of a picture (1, 3, H, W) and the gradient of their sum."""
        evaluation = Evaluation(self, picture)
        style, content = evaluation.gather()
        gradient = evaluation.take_back()
        tv = picture.new_zeros(())
        if self.settings.tv_weight:
            tv = self.settings.tv_weight * total_variation(picture)
            add_variation_gradient(picture, self.settings.tv_weight, gradient)
        return Losses(style, content, tv), gradient

    def spend(self, plan: Plan) -> None:
        """Work with a smaller plan from now on, its bands of the same height."""
        self.plan = plan
        for targets in self.content_targets:
            for layer, target in targets.items():
                targets[layer] = self._stored(target)

    def bands(self, picture: Tensor, layers: Sequence[str]) -> Bands:
        """Return how a picture is cut for reading `layers`."""
        height = picture.shape[-2]
        return Bands(self.network.up_to(layers), height, self.plan.rows)

    @torch.no_grad()
    def _content_targets(self, content: Tensor) -> list[dict[str, Tensor]]:
        """Return, by band, the content's features."""
        # Cut as the picture will be, for layers that may lie deeper.
        bands = self.bands(content, self.settings.layers)
        layers = self.settings.content_layers
        return [
            {layer: self._stored(found) for layer, found in features.items()}
            for features in self._features(content, layers, bands)
        ]

    def _stored(self, target: Tensor) -> Tensor:
        """Return a content target as the plan has it kept: not a view of a band."""
        halve = self.plan.half and target.dtype == torch.float32
        return target.half() if halve else target.clone()

    @torch.no_grad()
    def _grams(self, style: Tensor) -> dict[str, Tensor]:
        """Return a style's Gram matrices; a band's features are held at a time."""
        layers = self.settings.style_layers
        height, width = style.shape[-2:]
        # It may be wider than the picture, for which the plan is.
        rows = min(self.plan.rows, band_rows(self.settings, (width, height)))
        bands = Bands(self.network.up_to(layers), height, rows)
        sums = GramSums(self.exact)
        for features in self._features(style, layers, bands):
            sums.add(features)
        return sums.grams()

    def _features(
        self, picture: Tensor, layers: Sequence[str], bands: Bands
    ) -> Iterator[dict[str, Tensor]]:
        forward = Forward(self.network, layers, self.settings.pooling, bands)
        for number in range(bands.count):
            self.at_border()
            yield named(forward.band(picture, number), layers)


class Evaluation:
    """One evaluation of style and content loss: two passes over a picture's bands."""

    def __init__(self, objective: Objective, picture: Tensor) -> None:
        self._objective = objective
        self._picture = picture
        settings = self._settings = objective.settings
        bands = self._bands = objective.bands(picture, settings.layers)
        self._held = objective.plan.held
        run = (objective.network, settings.layers, settings.pooling, bands)
        self._forward, self._backward = Forward(*run), Backward(*run)
        # By number of the band: its features, and where to begin to read it again.
        self._kept: dict[int, list[Tensor]] = {}
        self._tails: dict[int, list[Tensor | None]] = {}
        # By layer: the factors of the gradient's formula.
        self._slopes: dict[str, Tensor] = {}
        self._pulls: dict[str, float] = {}

    def gather(self) -> tuple[Tensor, Tensor]:
        """Return the weighted style and content loss."""
        settings, count = self._settings, self._bands.count
        grams = GramSums(self._objective.exact)
        squares = SquareSums(self._objective.exact)
        kept = count - self._held
        for number in range(count):
            self._objective.at_border()
            if number < kept and (number == 0 or (kept - number) % self._held == 0):
                self._tails[number] = list(self._forward.tails)
            found = self._forward.band(self._picture, number)
            if number >= kept:
                self._kept[number] = found
            features = named(found, settings.layers)
            grams.add({layer: features[layer] for layer in settings.style_layers})
            squares.add(features, self._objective.content_targets[number])
            # Else this band would be in memory beside the next.
            del found, features
        self._pulls = {
            layer: 2 * settings.content_weight / places
            for layer, places in squares.places.items()
        }
        return self._style_loss(grams), settings.content_weight * squares.means().sum()

    def take_back(self) -> Tensor:
        """Return the gradient of both losses at the picture."""
        gradient = torch.empty_like(self._picture)
        for number in reversed(range(self._bands.count)):
            self._objective.at_border()
            if number not in self._kept:
                self._read_again(number)
            rows = slice(*self._bands.picture[number : number + 2])
            pull = partial(self._pull, self._objective.content_targets[number])
            gradient[..., rows, :] = self._backward.band(
                self._kept.pop(number), number, pull
            )
        return gradient

    def _style_loss(self, sums: GramSums) -> Tensor:
        """Return the weighted style loss; note the slope of each layer, (b, b)."""
        weight, blend = self._settings.style_weight, self._objective.blend
        losses = []
        for layer, found in sums.grams().items():
            off = found - self._objective.style_targets[layer]
            losses.append((blend * off.square()).sum() / found.numel())
            slope = 4 * weight / (found.numel() * sums.places[layer])
            self._slopes[layer] = (slope * (blend * off).sum(0)).to(
                self._objective.network.dtype
            )
        return weight * torch.stack(losses).sum()

    def _pull(
        self, targets: Mapping[str, Tensor], layer: str, features: Tensor
    ) -> Tensor | None:
        """Return the losses' gradient at a layer's features in one band."""
        pull: Tensor | None = None
        if layer.startswith("relu") and layer in self._settings.layers:
            features = F.relu(features)
        if layer in self._slopes:
            # A 1 x 1 convolution: the product of slope and features at every place.
            pull = F.conv2d(features, self._slopes[layer][..., None, None])
        if layer in targets:
            off = (features - targets[layer]).to(features.dtype)
            factor = self._pulls[layer]
            pull = off * factor if pull is None else pull.add_(off, alpha=factor)
        return pull

    def _read_again(self, number: int) -> None:
        """Read the band once more, and those above it that can be held with it."""
        first = max(0, number + 1 - self._held)
        self._forward.tails = self._tails.pop(first)
        for again in range(first, number + 1):
            self._objective.at_border()
            self._kept[again] = self._forward.band(self._picture, again)


def named(found: Sequence[Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
    """Return what `layers` give, of the features by convolution."""
    features = {}
    for layer in layers:
        features[layer] = found[LAYERS.index(layer) // 2]
        if layer.startswith("relu"):
            features[layer] = F.relu(features[layer])
    return features


def total_variation(picture: Tensor) -> Tensor:
    """Return the mean squared difference of neighbours, down plus across."""
    down, across = _differences(picture)
    # A picture one pixel wide has no neighbours across; the mean of none is NaN.
    return down.square().sum() / max(1, down.numel()) + across.square().sum() / max(
        1, across.numel()
    )


def add_variation_gradient(picture: Tensor, weight: float, gradient: Tensor) -> None:
    """Add `weight` times the gradient of the total variation."""
    for axis, off in zip((-2, -1), _differences(picture), strict=True):
        off = off * (2 * weight / max(1, off.numel()))
        size = picture.shape[axis]
        gradient.narrow(axis, 1, size - 1).add_(off)
        gradient.narrow(axis, 0, size - 1).sub_(off)


def _differences(picture: Tensor) -> tuple[Tensor, Tensor]:
    return picture.diff(dim=-2), picture.diff(dim=-1)
