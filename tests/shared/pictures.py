"""Picture files that Pillow cannot write itself, for the tests of reading them."""

import struct
import zlib
from io import BytesIO
from typing import Any

import pillow_heif
from PIL import ExifTags, Image, ImageCms

# Lets Pillow write HEIC, too.
pillow_heif.register_heif_opener()


def colourful(width: int = 48, height: int = 32) -> Image.Image:
    """Return a smooth picture whose four corners differ."""
    x = Image.linear_gradient("L").rotate(90).resize((width, height))
    y = Image.linear_gradient("L").resize((width, height))
    return Image.merge("RGB", (x, y, Image.new("L", (width, height), 60)))


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def exif(orientation: int = 1) -> bytes:
    """Return an EXIF block that tells a place and an author."""
    block = Image.Exif()
    block[ExifTags.Base.Orientation] = orientation
    block[ExifTags.Base.Artist] = "SECRET AUTHOR"
    gps = block.get_ifd(ExifTags.IFD.GPSInfo)
    gps[ExifTags.GPS.GPSLatitudeRef] = "N"
    gps[ExifTags.GPS.GPSLatitude] = (52.0, 31.0, 12.0)
    gps[ExifTags.GPS.GPSAreaInformation] = b"SECRET PLACE"
    return block.tobytes()


def png(
    size: tuple[int, int],
    depth: int,
    colour: int,
    pixels: bytes,
    *chunks: tuple[bytes, bytes],
) -> bytes:
    """Return a PNG with that bit depth and colour type, and extra chunks."""
    line = len(pixels) // max(1, size[1])
    rows = b"".join(
        b"\x00" + pixels[top : top + line] for top in range(0, len(pixels), line or 1)
    )
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)),
        *chunks,
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data))
        + name
        + data
        + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def tiff(
    size: tuple[int, int], bits: tuple[int, ...], data: bytes, **tags: int
) -> bytes:
    """Return an uncompressed TIFF; `photometric` and `sample_format` may be given."""
    offset = 8 + len(data)
    bits_data = struct.pack(f"<{len(bits)}H", *bits)
    bits_value = bits_data.ljust(4, b"\x00")
    if len(bits) > 2:
        bits_value = struct.pack("<I", offset)
        data += bits_data
        offset += len(bits_data)
    fields = [
        (256, 4, 1, struct.pack("<I", size[0])),
        (257, 4, 1, struct.pack("<I", size[1])),
        (258, 3, len(bits), bits_value),
        (259, 3, 1, struct.pack("<I", 1)),
        (262, 3, 1, struct.pack("<I", tags.get("photometric", 1))),
        (273, 4, 1, struct.pack("<I", 8)),
        (277, 3, 1, struct.pack("<I", len(bits))),
        (278, 4, 1, struct.pack("<I", size[1])),
        (279, 4, 1, struct.pack("<I", len(data))),
        (339, 3, 1, struct.pack("<I", tags.get("sample_format", 1))),
    ]
    directory = struct.pack("<H", len(fields)) + b"".join(
        struct.pack("<HHI", tag, kind, count) + value
        for tag, kind, count, value in fields
    )
    return b"II*\x00" + struct.pack("<I", offset) + data + directory + bytes(4)


def swapped_profile() -> bytes:
    """Return a profile like sRGB whose red means blue."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    names = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}
    table = 128 + 4
    out = bytearray(profile)
    for entry in range(struct.unpack_from(">I", profile, 128)[0]):
        at = table + 12 * entry
        name = bytes(profile[at : at + 4])
        out[at : at + 4] = names.get(name, name)
    return bytes(out)


def cmyk_profile(lab: tuple[int, int, int]) -> bytes:
    """Return a CMYK profile by which full cyan has that colour, and the rest is white.

    An ICC version 2 table with two points along each of the four inks.
    """
    ramp = bytes(range(256))
    grid = bytearray(bytes((255, 128, 128)) * 16)
    for corner in range(8, 16):  # cyan is the slowest index
        grid[corner * 3 : corner * 3 + 3] = bytes(lab)
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity
    table += ramp * 4 + bytes(grid) + ramp * 3
    table += bytes(-len(table) % 4)
    body = struct.pack(">I4sII", 1, b"A2B0", 128 + 16, len(table)) + table
    header = bytearray(128)
    struct.pack_into(">I4sI", header, 0, 128 + len(body), b"lcms", 0x02100000)
    header[12:24] = b"prtrCMYKLab "
    header[36:40] = b"acsp"
    struct.pack_into(">3I", header, 68, 0xF6D6, 0x10000, 0xD32D)
    return bytes(header) + body
