"""Split what Pillow has decoded into colours and alpha."""

from PIL import Image


def eight_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return the picture in L, RGB, CMYK, YCbCr or LAB, and its alpha if it has one."""
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode[:-1] + "A")
    elif image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode in ("LA", "RGBA"):
        alpha = image.getchannel("A")
        if image.format == "BMP" and alpha.getextrema() == (0, 0):
            return image.convert("RGB"), None  # as Windows shows it
        return image.convert(image.mode[:-1]), alpha
    if image.mode in ("1", "RGBX"):
        return image.convert("L" if image.mode == "1" else "RGB"), None
    return image, None
