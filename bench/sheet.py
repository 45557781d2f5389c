"""A sheet of pictures: ours, beside the textbook and pastiche at equal time.

    python -m bench.sheet [--content PHOTO --style PAINTING --second PAINTING]

Numbers do not tell whether a picture is good; look at it.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from pastiche.pastiche import (  # type: ignore[import-untyped]
    PasticheArtist,
    save_image,
)
from PIL import Image, ImageDraw, ImageFont

from bench import machine
from bench.classic import SHIPPED
from bench.textbook import CPU, Textbook, square
from stylequeue_shared.job_settings import complete_settings
from stylequeue_shared.settings import Settings
from stylequeue_worker.engine.network import build_network
from stylequeue_worker.pictures import content_tensor, finish
from stylequeue_worker.studio import Studio
from stylequeue_worker.weights import load_weights

CELL, CAPTION, COLUMNS = 384, 24, 4


def main() -> None:
    """Paint all pictures and save the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--content", type=Path, default=SHIPPED / "chelsea.png")
    parser.add_argument("--style", type=Path, default=SHIPPED / "ihc.png")
    parser.add_argument("--second", type=Path, default=SHIPPED / "coffee.png")
    parser.add_argument("--large", type=int, default=768, help="size of `print`")
    parser.add_argument("--out", type=Path, default=Path("sheet.jpg"))
    given = parser.parse_args()
    found = machine.describe()
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            square(path, given.large, Path(folder))
            for path in (given.content, given.style, given.second)
        ]
        sheet = Sheet(*(Image.open(path).convert("RGB") for path in paths))
        sheet.fill(given.large)
    sheet.picture().save(given.out, quality=88)
    print(f"saved {given.out}")
    machine.report("sheet", sheet.rows, found)


class Sheet:
    """Pictures with captions, in the order they were painted."""

    def __init__(
        self, content: Image.Image, style: Image.Image, second: Image.Image
    ) -> None:
        self.content, self.style, self.second = content, style, second
        self.studio = Studio(Settings(device="cpu"))
        self.rows: list[dict[str, Any]] = []
        self.cells: list[tuple[str, Image.Image]] = []

    def fill(self, large: int) -> None:
        """Paint everything."""
        self._add("content", self.content)
        self._add("style", self.style)
        seconds = self._ours("quick", {"preset": "quick"})
        self._theirs("textbook", self._textbook(), seconds)
        self._theirs("pastiche", self._pastiche(), seconds)
        self._ours("classic", {})
        self._ours("gatys", {"preset": "gatys", "steps": 250})
        quick = {"preset": "quick"}
        self._ours("luminance kept", {**quick, "preserve_colors": "luminance"})
        self._ours("histogram kept", {**quick, "preserve_colors": "histogram"})
        both = [self.style, self.second]
        self._ours("two styles", {**quick, "style_blend": [2, 1]}, both)
        print_ = {"preset": "print", "image_size": large}
        seconds = self._ours(f"print, {large}", print_)
        self._ours(f"one scale, {large}", {**print_, "scales": 1}, limit=seconds)

    def picture(self) -> Image.Image:
        """Return the sheet."""
        rows = -(-len(self.cells) // COLUMNS)
        sheet = Image.new("RGB", (COLUMNS * CELL, rows * (CELL + CAPTION)), "white")
        draw = ImageDraw.Draw(sheet)
        for number, (caption, picture) in enumerate(self.cells):
            left = number % COLUMNS * CELL
            top = number // COLUMNS * (CELL + CAPTION)
            shown = picture.resize((CELL, CELL), Image.Resampling.LANCZOS)
            sheet.paste(shown, (left, top + CAPTION))
            draw.text((left + 4, top + 4), caption, "black", ImageFont.load_default(15))
        return sheet

    def _add(self, name: str, picture: Image.Image, **facts: Any) -> None:
        seconds = facts.get("seconds")
        self.rows.append({"picture": name, "seconds": None, "steps": None, **facts})
        caption = name if seconds is None else f"{name}, {seconds:.0f} s"
        self.cells.append((caption, picture))
        print(self.rows[-1], flush=True)

    def _ours(
        self,
        name: str,
        given: dict[str, Any],
        styles: Sequence[Image.Image] = (),
        limit: float = float("inf"),
    ) -> float:
        styles = styles or [self.style]
        job = complete_settings({"seed": 1, **given}, styles=len(styles))
        began = time.perf_counter()
        steps = self.studio.paint(self.content, styles, job)
        step = next(steps)
        while step.stop_reason is None and time.perf_counter() - began < limit:
            step = next(steps)
        seconds = time.perf_counter() - began
        picture = finish(step.image, self.content, job)
        self._add(name, picture, seconds=seconds, steps=step.number, loss=step.loss)
        return seconds

    def _theirs(
        self, name: str, program: tuple[Callable[[], object], Any], limit: float
    ) -> None:
        step, result = program
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < limit:
            step()
            steps += 1
        self._add(name, result(), seconds=time.perf_counter() - began, steps=steps)

    def _textbook(self) -> tuple[Callable[[], object], Any]:
        job = complete_settings({"seed": 1}, styles=1)
        network = build_network(load_weights("bundled"), CPU)
        content, style = (
            content_tensor(image, job) for image in (self.content, self.style)
        )
        program = Textbook(network, content, style, job)
        return program.step, lambda: finish(program.picture.detach(), self.content, job)

    def _pastiche(self) -> tuple[Callable[[], object], Any]:
        """Return pastiche as its users run it, its defaults at 256 pixels."""
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder, f"{number}.png") for number in range(2)]
            for path, image in zip(paths, (self.content, self.style), strict=True):
                image.resize((256, 256), Image.Resampling.LANCZOS).save(path)
            program = PasticheArtist(str(paths[0]), [str(paths[1])], device="cpu")

        def result() -> Image.Image:
            file = BytesIO()
            save_image(program.pastiche, file)
            return Image.open(file).convert("RGB")

        return program.draw, result


if __name__ == "__main__":
    main()
