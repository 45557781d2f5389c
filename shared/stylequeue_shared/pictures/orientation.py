"""Turn pictures upright as their metadata says."""

from contextlib import suppress

from PIL import Image

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def of_exif(image: Image.Image) -> int:
    """Return the orientation in EXIF or XMP; 1 if there is none."""
    # Pillow has turned a TIFF itself and then taken the tag out.
    with suppress(Exception):  # a broken EXIF block is no reason to refuse
        return int(image.getexif().get(0x0112, 1))
    return 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Return the picture turned upright; the orientation is EXIF's."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)
