"""Mean activations of a VGG-19 over photographs, by which its features are divided.

So that loss weights mean the same with any weights. Gatys et al. (2016) rescale their
network likewise, but each filter by itself. Here a whole layer has one constant:
filters that rarely fire have large values before their ReLU, where `classic` reads;
blown up by constants of their own they made L-BFGS several times slower.

The constants of the bundled weights were measured by this module,
    python -m stylequeue_worker.calibration > means.json
and are committed beside it as bundled_means.json; those of other weights are measured
when they are loaded.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stylequeue_shared.layers import CONVOLUTIONS_PER_BLOCK
from stylequeue_worker.pictures import resized, to_tensor

# All of scikit-image's photographs of everyday scenes, in colour and grey.
PHOTOGRAPHS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "motorcycle_left.png",
    "rocket.jpg",
)
LONGER_SIDE = 384
MEANS_FILE = Path(__file__).with_name("bundled_means.json")


def photographs() -> list[Path]:
    """Return the pictures that scikit-image's wheel carries; it is not imported."""
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("scikit-image is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    return [folder / name for name in PHOTOGRAPHS]


def convolutions() -> tuple[tuple[str, int], ...]:
    """Return each convolution's name and its index in torchvision's `features`."""
    found, index = [], 0
    for block, count in enumerate(CONVOLUTIONS_PER_BLOCK, start=1):
        for number in range(1, count + 1):
            found.append((f"conv{block}_{number}", index))
            index += 2  # the convolution and its ReLU
        index += 1  # the pooling
    return tuple(found)


@torch.no_grad()
def measure(
    state: Mapping[str, Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    pictures: Sequence[Tensor],
) -> dict[str, float]:
    """Return each convolution's mean activation after ReLU.

    Every picture counts alike, whatever its size.
    """
    sums = dict.fromkeys((name for name, _ in convolutions()), 0.0)
    shift = torch.tensor(mean).view(1, 3, 1, 1)
    scale = torch.tensor(std).view(1, 3, 1, 1)
    for picture in pictures:
        x = ((picture - shift) / scale).contiguous(memory_format=torch.channels_last)
        for name, index in convolutions():
            if index and name.endswith("_1"):
                x = F.max_pool2d(x, 2)
            weight = state[f"features.{index}.weight"]
            x = F.relu_(F.conv2d(x, weight, state[f"features.{index}.bias"], padding=1))
            sums[name] += float(x.mean(dtype=torch.float64))
    # Five digits, as in the committed file: more would differ between machines.
    return {name: float(f"{total / len(pictures):.5g}") for name, total in sums.items()}


def measure_on_photographs(
    state: Mapping[str, Tensor], mean: Sequence[float], std: Sequence[float]
) -> dict[str, float]:
    """Measure on scikit-image's photographs; takes a few seconds."""
    pictures = []
    for path in photographs():
        with Image.open(path) as image:
            pictures.append(to_tensor(resized(image.convert("RGB"), LONGER_SIDE)))
    return measure(state, mean, std, pictures)


def committed_means(digest: str) -> dict[str, float] | None:
    """Return the committed constants, if they were measured for these weights."""
    record = json.loads(MEANS_FILE.read_text())
    if record["weights_sha256"] != digest:
        return None
    return {name: float(value) for name, value in record["means"].items()}


def _write_record() -> None:
    from stylequeue_worker.weights import read_bundled

    state, mean, std, digest = read_bundled()
    record = {
        "measured": "mean activation after ReLU over scikit-image's photographs "
        f"{', '.join(PHOTOGRAPHS)} at {LONGER_SIDE} pixels on the longer side, "
        "by python -m stylequeue_worker.calibration",
        "weights_sha256": digest,
        "means": measure_on_photographs(state, mean, std),
    }
    sys.stdout.write(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    _write_record()
