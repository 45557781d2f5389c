"""The table of a GPU: seconds and memory of 500 L-BFGS steps, beside pastiche.

    python -m bench.gpu [--size 512] [--steps 500]        # or: make bench-gpu

Each program has a process of its own, on the first visible GPU. Without one it says so
and measures nothing.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from pastiche.pastiche import PasticheArtist  # type: ignore[import-untyped]
from PIL import Image

from bench import machine
from bench.classic import SHIPPED
from bench.textbook import square, their_names
from stylequeue_shared.job_settings import complete_settings
from stylequeue_shared.settings import Settings
from stylequeue_worker.studio import Studio

# Seconds and peak bytes of a program's run.
Run = tuple[float, int]


def main() -> None:
    """Run each program and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=500)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no GPU here that torch can use: nothing was measured.")
        machine.report("gpu", [], machine.describe())
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            square(SHIPPED / name, given.size, Path(folder))
            for name in ("astronaut.png", "coffee.png")
        ]
        rows = list(compare(paths, given.size, given.steps))
    machine.report("gpu", rows, machine.describe())


def compare(paths: list[Path], size: int, steps: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each program."""
    found = {
        name: apart(program, paths, size, steps)
        for name, program in (
            ("float32", float32),
            ("bfloat16", bfloat16),
            ("pastiche", pastiche),
        )
    }
    for name, (seconds, peak) in found.items():
        yield {
            "program": name,
            "size": size,
            "steps": steps,
            "seconds": seconds,
            "peak_mb": round(peak / 1e6),
            "pastiche_takes": found["pastiche"][0] / seconds,
        }


def apart(program: Callable[..., Run], *given: Any) -> Run:
    """Run a program in a process of its own."""
    context = multiprocessing.get_context("spawn")
    line, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, program, *given))
    process.start()
    result: Run = line.recv()
    process.join()
    return result


def _send(line: Connection, program: Callable[..., Run], *given: Any) -> None:
    line.send(program(*given))


def float32(paths: list[Path], size: int, steps: int, **given: Any) -> Run:
    """Run ours, in float32 (with TF32, as torch is set up by the worker)."""
    settings = {"image_size": size, "steps": steps, "seed": 1, **given}
    job = complete_settings(settings, styles=1)
    studio = Studio(Settings(device="cuda:0"))
    content, style = (Image.open(path).convert("RGB") for path in paths)
    return timed(lambda: list(map(type, studio.paint(content, [style], job))))


def bfloat16(paths: list[Path], size: int, steps: int) -> Run:
    """Run ours in mixed precision."""
    return float32(paths, size, steps, precision="mixed")


def pastiche(paths: list[Path], size: int, steps: int) -> Run:
    """Run pastiche with the same layers."""
    job = complete_settings({"seed": 1}, styles=1)
    program = PasticheArtist(
        *(str(paths[0]), [str(paths[1])]),
        device="cuda:0",
        random_init=True,
        content_layers=their_names(job.content_layers),
        style_layers=their_names(job.style_layers),
    )
    return timed(lambda: [program.draw() for _ in range(steps)])


def timed(run: Callable[[], object]) -> Run:
    """Return the seconds, and the most bytes of the GPU that tensors took."""
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - began, torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    main()
