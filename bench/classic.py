"""The `classic` job on two real pictures: its losses on the way, and the picture.

    python -m bench.classic --content PHOTO --style PAINTING --out result.png
    python -m bench.classic --preset quick

Without pictures, photographs that scikit-image ships are taken: the cat Chelsea,
and as the style a microscope's picture of stained tissue, which has strong colours
and a texture of its own.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from bench.machine import describe, report
from stylequeue_shared.images import encode_png
from stylequeue_shared.job_settings import JobSettings, complete_settings
from stylequeue_shared.settings import Settings
from stylequeue_worker.calibration import photographs
from stylequeue_worker.engine.transfer import Step
from stylequeue_worker.pictures import description, finish
from stylequeue_worker.studio import Studio

SHIPPED = photographs()[0].parent
EVERY = 50


def main() -> None:
    """Run one job in this process, printing as it goes."""
    given = _arguments()
    machine = describe()
    settings = complete_settings(
        {"preset": given.preset, "seed": given.seed, **json.loads(given.settings)},
        styles=1,
    )
    content, style = _read(given.content), _read(given.style)
    studio = Studio(Settings(device=given.device, weights=given.weights))
    print(f"{settings.preset}: {given.content.name} as {given.style.name}", flush=True)
    rows = []
    began, step = time.perf_counter(), None
    for step in studio.paint(content, [style], settings):
        if step.number == 1 or step.number % EVERY == 0:
            rows.append(_row(step, time.perf_counter() - began))
            print(rows[-1], flush=True)
    assert step is not None
    text = description(settings, studio.made_with)
    given.out.write_bytes(encode_png(finish(step.image, content, settings), text))
    print(f"saved {given.out}")
    report("classic", rows, {**machine, "job": _identity(settings, given)})


def _row(step: Step, seconds: float) -> dict[str, Any]:
    return {
        "step": step.number,
        "style_loss": round(step.style_loss, 4),
        "content_loss": round(step.content_loss, 4),
        "loss": round(step.loss, 4),
        "seconds": round(seconds, 1),
        "seconds_per_step": round(seconds / step.number, 4),
    }


def _identity(settings: JobSettings, given: argparse.Namespace) -> dict[str, Any]:
    return {
        "preset": settings.preset,
        "image_size": settings.image_size,
        "content": given.content.name,
        "style": given.style.name,
        "weights": given.weights,
    }


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--content", type=Path, default=SHIPPED / "chelsea.png")
    parser.add_argument("--style", type=Path, default=SHIPPED / "ihc.png")
    parser.add_argument("--preset", default="classic")
    parser.add_argument("--settings", default="{}", help="further ones, as JSON")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("classic.png"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
