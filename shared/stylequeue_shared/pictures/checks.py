"""Limits on a picture's size, and the sentence for damaged files."""

from dataclasses import dataclass

from stylequeue_shared.errors import InvalidPicture

# Longer side to shorter: thinner ones leave nothing of themselves at a job's size.
MAX_ASPECT = 32


@dataclass(frozen=True)
class SizeLimit:
    """What size of picture is allowed; None is any number of pixels."""

    max_pixels: int | None

    def check(self, width: int, height: int) -> None:
        """Raise InvalidPicture if the size is not allowed."""
        found = f"found a picture of {width} x {height} pixels"
        if width < 1 or height < 1:
            raise InvalidPicture(f"{found}; allowed is 1 x 1 or more")
        if self.max_pixels is not None and width * height > self.max_pixels:
            raise InvalidPicture(
                f"{found}; allowed are at most {self.max_pixels / 1e6:g} megapixels"
            )
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise InvalidPicture(
                f"{found}; allowed is one side at most {MAX_ASPECT} times the other"
            )


def damaged(name: str) -> InvalidPicture:
    """Return the error for a file of that format whose contents are not whole."""
    return InvalidPicture(
        f"found a {name} picture that is damaged or cut short; allowed are whole "
        "pictures"
    )


def unsupported(what: str, allowed: str) -> InvalidPicture:
    """Return the error for a picture that is named and not read."""
    return InvalidPicture(
        f"found {what}, which is not supported; allowed are {allowed}"
    )
