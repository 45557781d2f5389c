"""How long until a picture is as good as the textbook's: wall time to its loss.

    python -m bench.quality [--content PHOTO --style PAINTING] [--steps 700]

The textbook runs its 700 steps in float32; then `quick` runs until its picture, judged
by the textbook's own code, is as good as what the textbook has at the end, as 1.05
times that, and as the best that the textbook had on the way, where it is unsteady.
Reading the pictures and targets counts, loading the weights and judging do not. Each
has a process of its own.
"""

import argparse
import math
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from bench import machine
from bench.classic import SHIPPED
from bench.textbook import CPU, Textbook, square
from stylequeue_shared.job_settings import complete_settings
from stylequeue_worker.engine.network import build_network
from stylequeue_worker.engine.transfer import transfer
from stylequeue_worker.memory import keep_freed_memory
from stylequeue_worker.pictures import content_tensor
from stylequeue_worker.weights import load_weights

GOALS = {"at the end": 20, "1.05 of it": 40}


def main() -> None:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--content", type=Path, default=SHIPPED / "astronaut.png")
    parser.add_argument("--style", type=Path, default=SHIPPED / "coffee.png")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=700, help="of the textbook")
    given = parser.parse_args()
    found = machine.describe()
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            square(path, given.size, Path(folder))
            for path in (given.content, given.style)
        ]
        rows = list(compare(paths, given.size, given.steps))
    names = {"content": given.content.name, "style": given.style.name}
    machine.report("quality", rows, {**found, **names})


def compare(paths: list[Path], size: int, steps: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each loss of the textbook's that ours is to reach."""
    theirs = list(run(textbook, paths, size, steps))
    ours = list(run(quick, paths, size, 300))
    end = theirs[-1]["loss"]
    best = min(theirs, key=lambda point: point["loss"])
    targets = {
        "at the end": (end, theirs[-1]),
        "1.05 of it": (1.05 * end, theirs[-1]),
        "best on the way": (best["loss"], best),
    }
    for name, (loss, reached) in targets.items():
        point = next((p for p in ours if p["loss"] <= loss), None)
        yield {
            "target": name,
            "loss": loss,
            "their_steps": reached["step"],
            "their_seconds": reached["seconds"],
            "our_steps": point and point["step"],
            "our_seconds": point and point["seconds"],
            "sooner": point and reached["seconds"] / point["seconds"],
            "goal": GOALS.get(name),
        }


def run(program: Any, *given: Any) -> Iterator[dict[str, Any]]:
    """Yield step, seconds and loss of a program in a process of its own."""
    context = multiprocessing.get_context("spawn")
    line, theirs = context.Pipe(duplex=False)
    process = context.Process(target=program, args=(theirs, *given))
    process.start()
    theirs.close()
    while True:
        try:
            yield line.recv()
        except EOFError:
            break
    process.join()


def textbook(line: Connection, paths: list[Path], size: int, steps: int) -> None:
    """Send the textbook's loss after every fifth step, and the seconds until then."""
    job = complete_settings({"image_size": size, "seed": 1}, styles=1)
    network = build_network(load_weights("bundled"), CPU)
    content, style = (content_tensor(Image.open(path), job) for path in paths)
    began = time.perf_counter()
    program = Textbook(network, content, style, job)
    judging = 0.0
    for step in range(1, steps + 1):
        program.step()
        if step % 5 == 0:
            seconds = time.perf_counter() - began - judging
            loss = judged(program, program.picture)
            judging = time.perf_counter() - began - seconds
            line.send({"step": step, "seconds": seconds, "loss": loss})
    line.close()


def quick(line: Connection, paths: list[Path], size: int, steps: int) -> None:
    """Send ours, judged by the textbook's code, after every fifth step."""
    given = {"preset": "quick", "image_size": size, "steps": steps, "seed": 1}
    job = complete_settings(given, styles=1)
    weights = load_weights("bundled")
    content, style = (content_tensor(Image.open(path), job) for path in paths)
    judge = Textbook(build_network(weights, CPU), content, style, job)
    network = build_network(weights, CPU)
    keep_freed_memory()
    fast_low = bool(torch.cpu._is_avx512_bf16_supported())
    began, judging = time.perf_counter(), 0.0
    for step in transfer(network, content, [style], job, fast_low=fast_low):
        if step.number % 5 == 0:
            seconds = time.perf_counter() - began - judging
            loss = judged(judge, step.image)
            judging = time.perf_counter() - began - seconds
            line.send({"step": step.number, "seconds": seconds, "loss": loss})
    line.close()


@torch.no_grad()
def judged(judge: Textbook, picture: torch.Tensor) -> float:
    """Return the textbook's own loss of a picture, clamped."""
    kept = judge.picture.detach().clone()
    judge.picture.copy_(picture.detach().clamp(0, 1))
    loss = sum(float(part) for part in judge.losses())
    judge.picture.copy_(kept)
    return loss if math.isfinite(loss) else math.inf


if __name__ == "__main__":
    main()
