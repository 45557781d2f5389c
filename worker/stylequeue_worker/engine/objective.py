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
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

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
        self.blend = torch.tensor(
            settings.blend(len(styles)), dtype=network.dtype, device=network.device
        )
        with torch.no_grad():
            self.content_targets = self._features(content, settings.content_layers)
            # One style after the other, so that the features of one are held at a time.
            grams = [self._grams(style) for style in styles]
            self.style_targets = {
                layer: torch.stack([of_style[layer] for of_style in grams])
                for layer in settings.style_layers
            }

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

    def _grams(self, style: Tensor) -> dict[str, Tensor]:
        features = self._features(style, self.settings.style_layers)
        return {layer: gram(read) for layer, read in features.items()}

    def _content_loss(self, features: dict[str, Tensor]) -> Tensor:
        losses = [
            F.mse_loss(features[layer], target)
            for layer, target in self.content_targets.items()
        ]
        return torch.stack(losses).sum()

    def _style_loss(self, features: dict[str, Tensor]) -> Tensor:
        losses = [
            GramDistance.apply(features[layer], targets, self.blend)
            for layer, targets in self.style_targets.items()
        ]
        return torch.stack(losses).sum()


class GramDistance(torch.autograd.Function):
    """How far a layer's Gram matrix is from its targets; the gradient is by hand.

    With F (c d, b), n = a b c d, G = F^T F / n and the targets T_s of shares blend_s

        L = sum_s blend_s mse(G, T_s)    dL/dF = 4 / (n b^2) F sum_s blend_s (G - T_s)

    as all of G and T_s are symmetric: one product forward and one backward. Autograd
    takes two backward, one for each F, and adds them.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, targets: Tensor, blend: Tensor) -> Tensor:
        """Return the distance of features (1, b, c, d) from targets (s, b, b)."""
        flat = _flat(features)
        off = flat.T @ flat / features.numel() - targets
        share = blend.view(-1, 1, 1)
        slope = (share * off).sum(0) * (4 / (features.numel() * off[0].numel()))
        ctx.save_for_backward(flat, slope)
        ctx.shape = features.shape
        return (share * off.square()).sum() / off[0].numel()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient at the features."""
        flat, slope = ctx.saved_tensors
        _, channels, height, width = ctx.shape
        gradient = (flat @ (upstream * slope)).view(1, height, width, channels)
        return gradient.permute(0, 3, 1, 2), None, None


def gram(features: Tensor) -> Tensor:
    """Return the Gram matrix (b, b) of features (1, b, c, d), divided by b c d."""
    flat = _flat(features)
    return flat.T @ flat / features.numel()


def _flat(features: Tensor) -> Tensor:
    """Return positions by channels; of channels-last features without a copy."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def total_variation(picture: Tensor) -> Tensor:
    """Return the mean squared difference of neighbours, down plus across."""
    down = (picture[..., 1:, :] - picture[..., :-1, :]).square()
    across = (picture[..., 1:] - picture[..., :-1]).square()
    # A picture one pixel wide has no neighbours across; the mean of none is NaN.
    return down.sum() / max(1, down.numel()) + across.sum() / max(1, across.numel())
