"""Between pictures (sRGB) and the engine's tensors (0..1)."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stylequeue_shared import images
from stylequeue_shared.errors import InvalidPicture
from stylequeue_shared.job_settings import JobSettings
from stylequeue_shared.sizes import fit
from stylequeue_worker import deep

Depth = TypeVar("Depth", np.uint8, np.uint16)

# Of gamma-coded RGB, as in Y'CbCr (ITU-R BT.709).
LUMA = (0.2126, 0.7152, 0.0722)
# A direction of colour with less variance, in steps of 8 bits squared, holds nothing
# but rounding, which dividing by it would blow up to specks of strong colour.
ROUNDING = 1.0


def content_tensor(image: Image.Image, settings: JobSettings) -> Tensor:
    """Return the content (1, 3, H, W) in 0..1, H and W being the result's size."""
    return _for_the_network(image, settings.image_size, settings, "content")


def style_tensor(
    image: Image.Image, settings: JobSettings, result_size: tuple[int, int]
) -> Tensor:
    """Return a style (1, 3, H, W) in 0..1, its longer side `style_size`.

    Without `style_size` the longer side is that of the result, whose two sides are
    given in either order.
    """
    longer = settings.style_size or max(result_size)
    return _for_the_network(image, longer, settings, "style")


def finish(image: Tensor, content: Image.Image, settings: JobSettings) -> Image.Image:
    """Return the picture of a step in 8 bits, with the colours that were asked.

    It is RGBA if the content is, which it only is where its alpha is to be kept.
    """
    return Image.fromarray(_quantised(image, content, settings, np.uint8))


def encode_result(
    image: Tensor,
    content: Image.Image,
    settings: JobSettings,
    text: Mapping[str, str],
) -> bytes:
    """Return the picture of a step as a file of the format that was asked."""
    if settings.result_format == "png":
        return images.encode_png(finish(image, content, settings), text)
    pixels = _quantised(image, content, settings, np.uint16)
    if settings.result_format == "png16":
        return deep.encode_png(pixels, text)
    return deep.encode_tiff(pixels, text)


def description(settings: JobSettings, made_with: Mapping[str, Any]) -> dict[str, str]:
    """Return what a picture says of itself, in a PNG's text chunks or a TIFF's tags."""
    parts = {name: str(value) for name, value in made_with.items()}
    return {
        "Software": f"StyleQueue {parts.pop('stylequeue', '')}".strip(),
        "settings": json.dumps(settings.model_dump(mode="json")),
        "seed": str(settings.seed),
        **parts,
    }


def with_colours_of(painted: Tensor, content: Tensor) -> Tensor:
    """Return the content's colour differences at the painting's luma (3, H, W).

    "Luminance-only transfer" of Gatys et al., Preserving Color in Neural Artistic
    Style Transfer (2016). Colours that do not exist at the new luma lose saturation
    rather than being clipped, which would change the luma; grey stays grey.
    """
    weights = torch.tensor(LUMA).view(3, 1, 1)
    luma = (painted * weights).sum(0, keepdim=True)
    # A grey pixel's differences must be exact zeros, which r - (ar + br + cr) is not.
    grey = (content[:1] == content[1:2]) & (content[1:2] == content[2:])
    differences = content - (content * weights).sum(0, keepdim=True)
    differences = differences.masked_fill(grey, 0)
    room = torch.where(differences > 0, 1 - luma, luma)
    saturation = (room / differences.abs().clamp_min(1e-6)).amin(0, keepdim=True)
    return luma + saturation.clamp(0, 1) * differences


def with_histogram_of(content: Tensor, style: Tensor) -> Tensor:
    """Return the style (1, 3, H, W) with the content's mean and covariance of colours.

    "Colour histogram matching" of Gatys et al., Preserving Color in Neural Artistic
    Style Transfer (2016), in the form of Image Analogies. The left root leaves only the
    content's directions of colour, so a grey content makes every style grey.
    """
    (target, spread), (mean, own) = _moments(content), _moments(style)
    matrix = _power(spread, 0.5) @ _power(own, -0.5)
    matched = torch.addmm(target - matrix @ mean, matrix, _levels(style))
    # In place: in float64 a large picture takes gigabytes.
    return matched.div_(255).clamp_(0, 1).float().view_as(style)


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB picture as float32 (1, 3, H, W) in 0..1."""
    pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
    return pixels.permute(2, 0, 1).unsqueeze(0).contiguous()


def resized(image: Image.Image, longer: int) -> Image.Image:
    """Return the picture with its longer side as given, the aspect ratio kept."""
    size = fit(image.size, longer)
    return image if size == image.size else image.resize(size, _FILTER)


_FILTER = Image.Resampling.LANCZOS


def _quantised(
    image: Tensor, content: Image.Image, settings: JobSettings, depth: type[Depth]
) -> NDArray[Depth]:
    """Return the picture of a step as height x width x 3 or 4 whole numbers."""
    painted = image.detach().to("cpu", torch.float32)[0]
    size = (painted.shape[-1], painted.shape[-2])
    if settings.preserve_colors == "luminance":
        original = content.convert("RGB").resize(size, _FILTER)
        painted = with_colours_of(painted, to_tensor(original)[0])
    if content.mode == "RGBA":
        alpha = np.array(content.getchannel("A").resize(size, _FILTER), np.float32)
        painted = torch.cat([painted, torch.from_numpy(alpha / 255).unsqueeze(0)])
    levels = painted.clamp(0, 1).mul_(np.iinfo(depth).max).round_().permute(1, 2, 0)
    return np.ascontiguousarray(levels.numpy(), dtype=depth)


def _levels(image: Tensor) -> Tensor:
    # Sums of whole numbers are exact in float64, however many threads share them.
    return image.mul(255).round_().double().view(3, -1)


def _moments(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (3, 1) and covariance (3, 3) of the colours, in steps of 8 bits."""
    levels = _levels(image)
    count = levels.shape[1]
    mean = levels.sum(1, keepdim=True) / count
    return mean, levels @ levels.T / count - mean @ mean.T


def _power(covariance: Tensor, exponent: float) -> Tensor:
    """Return a power of the matrix in its directions that are more than rounding."""
    variances, directions = torch.linalg.eigh(covariance)
    kept = variances > ROUNDING
    directions = directions[:, kept]
    power: Tensor = directions * variances[kept] ** exponent @ directions.T
    return power


def _for_the_network(
    image: Image.Image, longer: int, settings: JobSettings, field: str
) -> Tensor:
    size = fit(image.size, longer)
    if min(size) < settings.minimum_side:
        raise InvalidPicture(
            f"{field}: at {size[0]} x {size[1]} pixels nothing is left of it at "
            f"{settings.layers[-1]}; the shorter side must be at least "
            f"{settings.minimum_side}",
            field=field,
        )
    return to_tensor(resized(image.convert("RGB"), longer))
