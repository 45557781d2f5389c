"""Recognise what a file is, by its first bytes."""

from codecs import getincrementaldecoder
from contextlib import suppress

# Pillow's name of each accepted format, and the name that people know.
NAMES = {
    "JPEG": "JPEG",
    "PNG": "PNG",
    "WEBP": "WEBP",
    "TIFF": "TIFF",
    "BMP": "BMP",
    "GIF": "GIF",
    "AVIF": "AVIF",
    "HEIF": "HEIC",
}
# Nothing else is ever tried on an upload.
ACCEPTED = tuple(NAMES)
ACCEPTED_NAMES = ", ".join(NAMES.values())
# Browsers do not offer these files for `image/*` on every system.
_SUFFIXES = (".tif", ".tiff", ".avif", ".heic", ".heif")
# The value of a form's `accept` attribute.
FORM_ACCEPT = ",".join(("image/*", *_SUFFIXES))

_HEIF_BRANDS = {
    b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs",
    b"mif1", b"msf1",
}  # fmt: skip
_AVIF_BRANDS = {b"avif", b"avis"}

# The offset of each signature, its bytes, and what the file is. Order matters:
# camera raws also look like TIFF pictures.
_BINARY = (
    (0, b"II*\x00\x10\x00\x00\x00CR", "a camera raw picture (CR2)"),
    (0, b"IIRO", "a camera raw picture (ORF)"),
    (0, b"IIRS", "a camera raw picture (ORF)"),
    (0, b"MMOR", "a camera raw picture (ORF)"),
    (0, b"IIU\x00", "a camera raw picture (RW2)"),
    (0, b"FUJIFILMCCD-RAW", "a camera raw picture (RAF)"),
    (6, b"HEAPCCDR", "a camera raw picture (CRW)"),
    (0, b"FOVb", "a camera raw picture (X3F)"),
    (0, b"\x00MRM", "a camera raw picture (MRW)"),
    (4, b"ftypcrx ", "a camera raw picture (CR3)"),
    (0, b"II\xbc", "a JPEG XR picture"),
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (4, b"JXL \r\n", "a JPEG XL picture"),
    (4, b"jP  ", "a JPEG 2000 picture"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"gimp xcf", "a GIMP file"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (0, b"#?RADIANCE", "a Radiance HDR picture"),
    (0, b"#?RGBE", "a Radiance HDR picture"),
    (0, b"\x00\x00\x01\x00", "an icon (ICO)"),
    (0, b"\x00\x00\x02\x00", "a cursor (CUR)"),
    (0, b"icns", "an icon (ICNS)"),
    (0, b"DDS ", "a DDS texture"),
    (0, b"qoif", "a QOI picture"),
    (0, b"\x8aMNG", "an MNG animation"),
    (0, b"\x8bJNG", "a JNG picture"),
    (0, b"BPG\xfb", "a BPG picture"),
    (0, b"FLIF", "a FLIF picture"),
    (0, b"SIMPLE  =", "a FITS picture"),
    (128, b"DICM", "a DICOM picture"),
    (0, b"\x01\x00\x00\x00", "a Windows metafile"),
    (0, b"\xd7\xcd\xc6\x9a", "a Windows metafile"),
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"PK\x03\x04", "a ZIP archive or office document"),
    (0, b"\x1a\x45\xdf\xa3", "a video"),
    (0, b"\xff\xd8\xff", "a damaged JPEG picture"),
    (0, b"\x89PNG", "a damaged PNG picture"),
    (0, b"GIF8", "a damaged GIF picture"),
    (8, b"WEBP", "a damaged WEBP picture"),
    (0, b"II*\x00", "a TIFF picture that is damaged or not supported"),
    (0, b"MM\x00*", "a TIFF picture that is damaged or not supported"),
    (0, b"II+\x00", "a TIFF picture that is damaged or not supported"),
    (0, b"MM\x00+", "a TIFF picture that is damaged or not supported"),
    (0, b"BM", "a damaged BMP picture"),
)
_TEXTS = (
    (b"%pdf", "a PDF document"),
    (b"<svg", "an SVG drawing"),
    (b"<!doctype svg", "an SVG drawing"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
)


def identify(data: bytes) -> str | None:
    """Return Pillow's name of the accepted format that these bytes start."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:4] in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"):
        return None if data[8:10] == b"CR" else "TIFF"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM"):
        return "BMP"
    brands = _brands(data)
    if brands & _AVIF_BRANDS:
        return "AVIF"
    return "HEIF" if brands & _HEIF_BRANDS else None


def describe(data: bytes) -> str:
    """Return what a file is that cannot be read, for a message to its sender."""
    if not data:
        return "an empty file"
    for offset, signature, kind in _BINARY:
        if data.startswith(signature, offset):
            return kind
    brands = _brands(data)
    if brands & _AVIF_BRANDS:
        return "an AVIF picture that is damaged or not supported"
    if brands & _HEIF_BRANDS:
        return "a HEIC picture that is damaged or not supported"
    if brands:
        return "a video"
    if data[-18:].startswith(b"TRUEVISION-XFILE"):
        return "a TGA picture"
    return _text(data[:1024])


def _brands(data: bytes) -> set[bytes]:
    """Return the brands that an ISO media file gives in its first box."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), 256)
    places = (8, *range(16, end, 4))
    return {data[at : at + 4] for at in places if len(data[at : at + 4]) == 4}


def _text(head: bytes) -> str:
    start = head.lower().removeprefix(b"\xef\xbb\xbf").lstrip()
    for signature, kind in _TEXTS:
        if start.startswith(signature):
            return kind
    if start.startswith((b"<?xml", b"<!--")):
        return "an SVG drawing" if b"<svg" in start else "an XML document"
    if _is_portable(head):
        return "a PNM picture"
    with suppress(UnicodeDecodeError):
        # Incremental, since the last character may be cut in two.
        text = getincrementaldecoder("utf-8")().decode(head)
        if "\x00" not in text:
            return "a text"
    return "a file that is not a picture"


def _is_portable(head: bytes) -> bool:
    return head[:1] == b"P" and head[1:2] in b"1234567f" and head[2:3] in b" \t\r\n"
