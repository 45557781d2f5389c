"""Admit only as many submissions at a time as leave threads for quick requests."""

from flask import Flask, g, request

from stylequeue_web.services import services

# The views whose requests carry pictures.
UPLOAD_ENDPOINTS = ("api.submit", "pages.submit")
# All other requests carry a few fields at most.
MAX_OTHER_BYTES = 100_000


def protect(app: Flask) -> None:
    """Admit or refuse each upload before anything reads its body."""
    app.before_request(admit)
    app.teardown_request(leave)


def admit() -> None:
    """Take an upload's slot, or allow a short body only. Raises Busy."""
    if request.endpoint not in UPLOAD_ENDPOINTS or request.method != "POST":
        request.max_content_length = MAX_OTHER_BYTES
        return
    services().admission.uploads.take()
    g.holds_upload_slot = True


def leave(error: BaseException | None) -> None:
    """Give the slot back, however the request ended."""
    if g.pop("holds_upload_slot", False):
        services().admission.uploads.give_back()
