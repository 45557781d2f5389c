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
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stylequeue_shared.job_settings import JobSettings
from stylequeue_worker.engine.network import LossNetwork


class Losses(NamedTuple):
    """The weighted terms of the objective, each a tensor of one number."""

    style: Tensor
    content: Tensor
    tv: Tensor


class Objective:
    """The objective of one job; the targets are computed once, here."""

    def __init__(
        self,
        network: LossNetwork,
        content: Tensor,
        styles: Sequence[Tensor],
        settings: JobSettings,
    ) -> None:
        self.network = network
        self.settings = settings
        self.blend = settings.blend(len(styles))
        with torch.no_grad():
            self.content_targets = self._features(content, settings.content_layers)
            self.style_targets = [
                {layer: gram(features) for layer, features in read.items()}
                for read in (self._features(s, settings.style_layers) for s in styles)
            ]

    def __call__(self, picture: Tensor) -> Losses:
        """Return the weighted losses of a picture, from one forward pass."""
        features = self._features(picture, self.settings.layers)
        return Losses(
            self.settings.style_weight * self._style_loss(features),
            self.settings.content_weight * self._content_loss(features),
            self.settings.tv_weight * total_variation(picture),
        )

    def gradient(self, picture: Tensor) -> tuple[Losses, Tensor]:
        """Return the losses of a picture and the gradient of their sum."""
        picture = picture.detach().requires_grad_()
        losses = self(picture)
        (gradient,) = torch.autograd.grad(
            losses.style + losses.content + losses.tv, picture
        )
        return Losses(*(loss.detach() for loss in losses)), gradient

    def _features(self, picture: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        features: dict[str, Tensor]
        features = self.network(picture, layers, self.settings.pooling)
        return features

    def _content_loss(self, features: dict[str, Tensor]) -> Tensor:
        losses = [
            F.mse_loss(features[layer], target)
            for layer, target in self.content_targets.items()
        ]
        return torch.stack(losses).sum()

    def _style_loss(self, features: dict[str, Tensor]) -> Tensor:
        grams = {layer: gram(features[layer]) for layer in self.settings.style_layers}
        losses = [
            weight * F.mse_loss(grams[layer], target)
            for weight, targets in zip(self.blend, self.style_targets, strict=True)
            for layer, target in targets.items()
        ]
        return torch.stack(losses).sum()


def gram(features: Tensor) -> Tensor:
    """Return the Gram matrix (b, b) of features (1, b, c, d), divided by b c d."""
    # Channels-last features are a matrix of positions by channels without a copy.
    flat = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])
    return flat.T @ flat / features.numel()


def total_variation(picture: Tensor) -> Tensor:
    """Return the mean squared difference of neighbours, down plus across."""
    down = (picture[..., 1:, :] - picture[..., :-1, :]).square()
    across = (picture[..., 1:] - picture[..., :-1]).square()
    # A picture one pixel wide has no neighbours across; the mean of none is NaN.
    return down.sum() / max(1, down.numel()) + across.sum() / max(1, across.numel())
