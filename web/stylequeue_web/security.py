"""What keeps other sites from using a visitor's browser against us.

Listening on the loopback address is no protection by itself: any page that the
visitor opens may send requests there.
"""

import socket
from ipaddress import ip_address
from urllib.parse import urlsplit

from flask import Flask, Response, current_app, request
from werkzeug.exceptions import BadRequest, Forbidden
from werkzeug.sansio.utils import host_is_trusted

from stylequeue_shared.settings import Settings

HOSTS = "OUR_HOSTS"
OPEN = "OPEN_TO_OTHERS"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
EVERYWHERE = ("0.0.0.0", "::", "")
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "font-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    # Other sites may neither embed our pictures nor hold on to our windows.
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


def protect(app: Flask, settings: Settings) -> None:
    """Check the host and the origin of each request, and set the headers."""
    # Not Flask's TRUSTED_HOSTS: it knows no IPv6, and refuses before any page, that
    # of the error included, can be made.
    app.config[HOSTS] = trusted_hosts(settings)
    app.config[OPEN] = not settings.is_loopback
    app.before_request(refuse_foreign_host)
    app.before_request(refuse_foreign_origin)
    app.after_request(set_headers)


def trusted_hosts(settings: Settings) -> list[str]:
    """Return the names under which we may be asked: a rebound name is not among them.

    When open to others, our own host name is, and what the operator names in
    STYLEQUEUE_TRUSTED_HOSTS.
    """
    hosts = ["127.0.0.1", "localhost", "::1", *settings.trusted_hosts]
    if settings.host not in EVERYWHERE:
        hosts.append(settings.host)
    if not settings.is_loopback:
        hosts.append(socket.gethostname())
    return list(dict.fromkeys(_as_in_addresses(host) for host in hosts))


def refuse_foreign_host() -> None:
    """Refuse a request that came here under another's name."""
    host, hosts = request.host.lower(), current_app.config[HOSTS]
    if host.startswith("["):
        trusted = host.rpartition("]")[0] + "]" in hosts
    else:
        trusted = host_is_trusted(host, hosts)
    # Names can be rebound to our address; an address is nobody else's.
    if not trusted and not (current_app.config[OPEN] and _is_address(host)):
        raise BadRequest(
            f"Host is {request.host[:80]!r}; other names than ours must be given in "
            "STYLEQUEUE_TRUSTED_HOSTS."
        )


def refuse_foreign_origin() -> None:
    """Refuse an unsafe request that another site made the browser send.

    Programs such as curl send neither header.
    """
    if request.method in SAFE_METHODS:
        return
    site = request.headers.get("Sec-Fetch-Site")
    if site not in (None, "same-origin", "none"):
        raise Forbidden(
            f"Sec-Fetch-Site is {site[:20]!r}: requests of other sites are refused."
        )
    origin = request.headers.get("Origin")
    if origin is not None and _host_of(origin) != request.host.lower():
        raise Forbidden(f"Origin is {origin[:80]!r}: other sites are refused.")


def set_headers(response: Response) -> Response:
    """Add the headers that every answer carries."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _is_address(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname
        return not ip_address(name or "").is_unspecified
    except ValueError:
        return False


def _as_in_addresses(host: str) -> str:
    is_ipv6 = host.count(":") > 1 and not host.startswith("[")
    return f"[{host}]".lower() if is_ipv6 else host.lower()


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
