"""What only operators may do, and how they show that they are some.

Programs send the token of STYLEQUEUE_OPERATOR_TOKEN with each call. People enter it
once; a signed cookie remembers that they did, until it changes.
"""

import hashlib
import hmac

from flask import request, session
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Forbidden, Unauthorized

from stylequeue_web import rate_limits
from stylequeue_web.services import services

COOKIE = "operator"


def require() -> None:
    """Refuse a request without the token: 401, or 403 where nobody has one."""
    if not exist():
        raise Forbidden("STYLEQUEUE_OPERATOR_TOKEN is not set: there are no operators.")
    if not shows_token():
        raise _unauthorized()


def shows_token() -> bool:
    """Whether the request carries the token.

    Raises Unauthorized for a wrong one, and TooManyRequests after many of them.
    """
    token, given = _token(), request.authorization
    if token is None or given is None or given.type != "bearer":
        return False
    if not _same(given.token or "", token):
        rate_limits.count_wrong_token()
        raise _unauthorized()
    return True


def exist() -> bool:
    """Whether this installation has operators."""
    return _token() is not None


def sign_in(given: str) -> bool:
    """Remember this visitor as an operator if the token is right; return whether.

    Raises TooManyRequests after many wrong ones.
    """
    token = _token()
    if token is None:
        return False
    if not _same(given, token):
        rate_limits.count_wrong_token()
        return False
    session[COOKIE] = _digest(token)
    return True


def sign_out() -> None:
    """Forget that this visitor is an operator."""
    session.pop(COOKIE, None)


def signed_in() -> bool:
    """Whether this visitor entered the token that holds now."""
    token = _token()
    return token is not None and _same(session.get(COOKIE, ""), _digest(token))


def _unauthorized() -> Unauthorized:
    return Unauthorized(
        "Only operators may do this: send `Authorization: Bearer` and the token of "
        "STYLEQUEUE_OPERATOR_TOKEN.",
        www_authenticate=WWWAuthenticate("bearer"),
    )


def _token() -> str | None:
    token = services().settings.operator_token
    return token.get_secret_value() if token else None


def _digest(token: str) -> str:
    # Cookies are signed, but not secret.
    key = services().settings.cookie_key.encode()
    return hmac.new(key, token.encode(), hashlib.sha256).hexdigest()


def _same(one: str, other: str) -> bool:
    """Compare in a time that tells nothing of where they differ."""
    return hmac.compare_digest(one.encode(), other.encode())
