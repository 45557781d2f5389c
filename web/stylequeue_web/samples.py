"""Pictures for a first visit: photographs of a dependency, styles of our own."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from stylequeue_shared.errors import NotFound
from stylequeue_shared.images import encode_jpeg, from_array
from stylequeue_web import drawings


@dataclass(frozen=True)
class Sample:
    """A picture that visitors may use; the credit is shown with it."""

    name: str
    title: str
    kind: Literal["content", "style"]
    credit: str


OWN = "Painted by StyleQueue's own code"
# File names in scikit-image's wheel: only the files are used, never the module.
PHOTOGRAPHS = {
    Sample("cat", "Chelsea the cat", "content", "scikit-image, CC0"): "chelsea.png",
    Sample("coffee", "A cup of coffee", "content", "scikit-image, CC0"): "coffee.png",
    Sample("astronaut", "An astronaut", "content", "NASA, public domain"): (
        "astronaut.png"
    ),
    Sample(
        "rocket", "A rocket at night", "content", "SpaceX, public domain"
    ): "rocket.jpg",
}
DRAWINGS: dict[Sample, Callable[[], Any]] = {
    Sample("garden", "Poppies at dusk", "style", OWN): drawings.garden,
    Sample("night", "Whirling night", "style", OWN): drawings.night,
    Sample("waves", "Printed waves", "style", OWN): drawings.waves,
    Sample("mosaic", "Glass mosaic", "style", OWN): drawings.mosaic,
}
MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg"}


def samples() -> tuple[Sample, ...]:
    """Return all samples, photographs first."""
    return (*PHOTOGRAPHS, *DRAWINGS)


@cache
def sample_bytes(name: str) -> tuple[bytes, str]:
    """Return the picture and its media type; painted once. Raises NotFound."""
    for sample, file in PHOTOGRAPHS.items():
        if sample.name == name:
            path = _folder() / file
            return path.read_bytes(), MEDIA_TYPES[path.suffix]
    for sample, draw in DRAWINGS.items():
        if sample.name == name:
            return encode_jpeg(from_array(draw()), quality=93), "image/jpeg"
    raise NotFound(f"no such sample: {name}")


def _folder() -> Path:
    # Importing it would take a second, and scipy.
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise NotFound("scikit-image, which carries the photographs, is not installed")
    return Path(spec.submodule_search_locations[0]) / "data"
