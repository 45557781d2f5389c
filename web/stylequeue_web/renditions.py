"""Pictures as they leave the house: without metadata, at a fitting size."""

from functools import partial
from io import BytesIO
from pathlib import Path
from tempfile import NamedTemporaryFile

from flask import Response, request, send_file

from stylequeue_shared import reading
from stylequeue_shared.artefacts import (
    RENDITION_SIZES,
    clean_key,
    media_type,
    original_key,
    rendition_key,
    suffix,
)
from stylequeue_shared.decoding import render
from stylequeue_shared.errors import InvalidSetting, NotFound
from stylequeue_web.services import Services

# What a worker may have made: a square of the largest side.
LARGEST_RESULT = 8192 * 8192


def send_original(services: Services, sha256: str, name: str) -> Response:
    """Send an upload, made anew from its pixels, whole or at `?size=`."""
    source = original_key(sha256)
    size = requested_size()
    if size is None:
        return _send_made(services, source, clean_key(source), None, f"{name}.png")
    return _send_made(
        services, source, rendition_key(source, size), size, f"{name}-{size}.jpg"
    )


def send_made(services: Services, key: str, name: str) -> Response:
    """Send a picture that a worker made, whole or at `?size=`."""
    size = requested_size()
    if size is None:
        return _send(services, key, f"{name}{suffix(key)}")
    return _send_made(
        services, key, rendition_key(key, size), size, f"{name}-{size}.jpg"
    )


def requested_size() -> int | None:
    """Return the `?size=` asked for. Raises InvalidSetting naming what is allowed."""
    text = request.args.get("size")
    if text is None:
        return None
    if text not in map(str, RENDITION_SIZES):
        raise InvalidSetting(
            f"size: found {text[:20]!r}; allowed are "
            f"{', '.join(map(str, RENDITION_SIZES))}",
            field="size",
        )
    return int(text)


def _send_made(
    services: Services, source: str, key: str, size: int | None, name: str
) -> Response:
    """Send a rendition, made once and kept in the store. Raises Busy."""
    if not services.store.exists(key):
        admission = services.admission
        with admission.renditions.held():
            admission.flights.do(key, partial(_make, services, source, key, size))
    return _send(services, key, name)


def _make(services: Services, source: str, key: str, size: int | None) -> None:
    """Make the rendition and store it, from file to file."""
    store = services.store
    if store.exists(key):
        return  # another request has made it since this one looked
    with (
        store.local(source) as path,
        NamedTemporaryFile(prefix="stylequeue-") as file,
    ):
        target = Path(file.name)
        render(
            path,
            target,
            size=size,
            format="png" if size is None else "jpeg",
            max_pixels=max(LARGEST_RESULT, services.settings.max_pixels),
        )
        store.put(key, target)
    # The job may have been deleted meanwhile, and what was made of it with it.
    if not reading.is_named(services.database, source):
        store.delete(key)
        raise NotFound("The picture was deleted.")


def _send(services: Services, key: str, name: str) -> Response:
    etag = key.replace("/", "-")
    # A store far away need not begin to send what nobody will read.
    unread = request.method == "HEAD" or etag in request.if_none_match
    response = send_file(
        BytesIO() if unread else services.store.open(key),
        mimetype=media_type(key),
        download_name=name,
        as_attachment="download" in request.args,
        # A key never names other bytes.
        etag=etag,
        max_age=86400,
        # Below, when all headers are there; and not by parts, which nobody needs.
        conditional=False,
    )
    response.cache_control.private = True
    response.cache_control.public = False
    response.headers["Content-Length"] = str(services.store.size(key))
    response.make_conditional(request)
    return response
