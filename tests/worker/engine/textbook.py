"""The textbook form of the objective, restated plainly and independently.

The original weights layer by layer, nothing folded, truncated or in place; every
target runs its own network.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stylequeue_shared.job_settings import JobSettings
from stylequeue_worker.weights import Weights

# Where torchvision's Sequential has its convolutions.
INDEX = {
    "1_1": 0, "1_2": 2, "2_1": 5, "2_2": 7, "3_1": 10, "3_2": 12, "3_3": 14,
    "3_4": 16, "4_1": 19, "4_2": 21, "4_3": 23, "4_4": 25, "5_1": 28, "5_2": 30,
    "5_3": 32, "5_4": 34,
}  # fmt: skip
# What average pooling is multiplied by.
SCALE = {"2_1": 1.26, "3_1": 1.74, "4_1": 1.51, "5_1": 2.19}


def all_features(
    weights: Weights, picture: Tensor, pooling: str
) -> Mapping[str, Tensor]:
    """Return the features of the original network, each divided by its constant."""
    dtype = picture.dtype
    channels = [(picture[:, i] - weights.mean[i]) / weights.std[i] for i in range(3)]
    x = torch.stack(channels, dim=1)
    found = {}
    for place, index in INDEX.items():
        if place.endswith("_1") and place != "1_1":
            windows = torch.stack(
                [
                    x[
                        :,
                        :,
                        i : 2 * (x.shape[2] // 2) : 2,
                        j : 2 * (x.shape[3] // 2) : 2,
                    ]
                    for i in (0, 1)
                    for j in (0, 1)
                ]
            )
            x = windows.amax(0) if pooling == "max" else SCALE[place] * windows.mean(0)
        if 0 in x.shape:
            break
        kernel = weights.state[f"features.{index}.weight"].to(dtype)
        bias = weights.state[f"features.{index}.bias"].to(dtype)
        x = torch.nn.functional.conv2d(x, kernel, bias, padding=1)
        constant = weights.means[f"conv{place}"]
        found[f"conv{place}"] = x / constant
        x = torch.where(x > 0, x, torch.zeros_like(x))
        found[f"relu{place}"] = x / constant
    return found


def gram(features: Tensor) -> Tensor:
    a, b, c, d = features.shape
    return torch.einsum("nicd,njcd->ij", features, features) / (a * b * c * d)


def losses(
    weights: Weights,
    picture: Tensor,
    content: Tensor,
    styles: Sequence[Tensor],
    settings: JobSettings,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weighted style, content and total variation losses."""
    style_loss = content_loss = torch.zeros((), dtype=picture.dtype)
    found = all_features(weights, picture, settings.pooling)
    wanted = all_features(weights, content, settings.pooling)
    for layer in settings.content_layers:
        content_loss = content_loss + ((found[layer] - wanted[layer]) ** 2).mean()
    blend = settings.style_blend or [1] * len(styles)
    for share, style in zip(blend, styles, strict=True):
        painted = all_features(weights, style, settings.pooling)
        for layer in settings.style_layers:
            difference = gram(found[layer]) - gram(painted[layer])
            style_loss = style_loss + share / sum(blend) * (difference**2).mean()
    variation = torch.zeros((), dtype=picture.dtype)
    for axis in (2, 3):
        if picture.shape[axis] > 1:
            variation = variation + (picture.diff(dim=axis) ** 2).mean()
    return (
        settings.style_weight * style_loss,
        settings.content_weight * content_loss,
        settings.tv_weight * variation,
    )
