"""Teach Pillow to read HEIC, which telephones send."""

from pillow_heif import HeifImagePlugin, options

# One thread: the child that decodes may not start any.
options.DECODE_THREADS = 1
# Only the picture itself is wanted.
options.THUMBNAILS = False
options.DEPTH_IMAGES = False
options.AUX_IMAGES = False

__all__ = ["HeifImagePlugin"]
