"""How often one client may do what costs or guesses."""

import time
from ipaddress import IPv6Address, ip_network
from typing import Any

from flask import Flask, current_app, request
from flask_limiter import HeaderNames, Limiter
from limits import parse
from werkzeug.exceptions import TooManyRequests

from stylequeue_web.forwarded import read_address
from stylequeue_web.security import SAFE_METHODS

# Each server process counts for itself, so that counting needs no Redis.
SUBMISSIONS = "120 per minute"
WRONG_TOKENS = parse("20 per minute")
SUBMITTING = ("api.submit", "api.retry", "pages.submit", "pages.retry")


def limit_submissions(app: Flask) -> None:
    """Limit how often one client submits, by whichever way."""
    limiter = Limiter(
        client,
        app=app,
        storage_uri="memory://",
        headers_enabled=True,
        # A Retry-After would tell every client, accepted or not, to submit again.
        header_name_mapping={HeaderNames.RETRY_AFTER: "X-RateLimit-Reset-After"},
    )
    # What is only read is not limited; looking that up would cost each poll a tenth.
    limiter.request_filter(lambda: request.method in SAFE_METHODS)
    limited = limiter.shared_limit(SUBMISSIONS, scope="submissions")
    for endpoint in SUBMITTING:
        view: Any = app.view_functions[endpoint]
        app.view_functions[endpoint] = limited(view)


def count_wrong_token() -> None:
    """Note that the client showed a wrong operator token.

    Raises TooManyRequests when it did so too often. The right token is never counted:
    clients behind one address cannot lock each other out.
    """
    (limiter,) = current_app.extensions["limiter"]
    who = ("wrong tokens", client())
    if limiter.limiter.hit(WRONG_TOKENS, *who):
        return
    seconds = seconds_until(limiter.limiter.get_window_stats(WRONG_TOKENS, *who)[0])
    raise TooManyRequests(
        f"Too many wrong operator tokens from this address; try again in {seconds} s.",
        retry_after=seconds,
    )


def client() -> str:
    """Return what stands for the client: its address, or its network on IPv6.

    One who has an IPv6 network has at least 2^64 addresses.
    """
    address = read_address(request.remote_addr or "")
    if isinstance(address, IPv6Address):
        return str(ip_network((address, 64), strict=False))
    return str(address or request.remote_addr)


def seconds_until(moment: float) -> int:
    """Return for how many whole seconds to wait, one at least."""
    return max(1, int(moment - time.time()))
