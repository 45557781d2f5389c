"""What keeps other sites from using a visitor's browser against us.

Listening on the loopback address is no protection by itself: any page that the
visitor opens may send requests there.
"""

import hashlib
import hmac
import socket
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from flask import Flask, Response, current_app, request
from flask.sessions import SecureCookieSessionInterface
from werkzeug.exceptions import BadRequest, Forbidden
from werkzeug.sansio.utils import host_is_trusted

from stylequeue_shared.settings import Settings
from stylequeue_web.forwarded import ASKED_HOST

HOSTS = "OUR_HOSTS"
OPEN = "OPEN_TO_OTHERS"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
EVERYWHERE = ("0.0.0.0", "::", "")
DEFAULT_PORTS = {"http": 80, "https": 443}
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
    app.config.update(
        SESSION_COOKIE_NAME=cookie_name(settings),
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
    )
    app.session_interface = Sessions()
    app.before_request(refuse_foreign_host)
    app.before_request(refuse_foreign_origin)
    app.after_request(set_headers)


class Sessions(SecureCookieSessionInterface):
    """Sessions in a cookie that is sent only where the pages are."""

    def get_cookie_path(self, app: Flask) -> str:
        return request.script_root or "/"

    def get_cookie_secure(self, app: Flask) -> bool:
        return request.is_secure


def cookie_name(settings: Settings) -> str:
    """Return a name of this installation's own.

    Browsers send a host's cookies to all its ports: two installations on one host
    would overwrite each other's.
    """
    key = settings.cookie_key.encode()
    return f"stylequeue_{hmac.new(key, b'cookie', hashlib.sha256).hexdigest()[:12]}"


def trusted_hosts(settings: Settings) -> list[str]:
    """Return the names under which we may be asked: a rebound name is not among them.

    When open to others, our own host name is, and what the operator names in
    STYLEQUEUE_TRUSTED_HOSTS and STYLEQUEUE_PUBLIC_URL.
    """
    hosts = ["127.0.0.1", "localhost", "::1", *settings.trusted_hosts]
    if settings.public_url:
        hosts.append(urlsplit(settings.public_url).hostname or "")
    if settings.host not in EVERYWHERE:
        hosts.append(settings.host)
    if not settings.is_loopback:
        hosts.append(socket.gethostname())
    return list(dict.fromkeys(_as_in_addresses(host) for host in hosts))


def refuse_foreign_host() -> None:
    """Refuse a request that came here under another's name."""
    asked = _asked_host()
    host, hosts = asked.lower(), current_app.config[HOSTS]
    if host.startswith("["):
        trusted = host.rpartition("]")[0] + "]" in hosts
    else:
        trusted = host_is_trusted(host, hosts)
    # Names can be rebound to our address; an address is nobody else's.
    if not trusted and not (current_app.config[OPEN] and _is_address(host)):
        raise BadRequest(
            f"Host is {asked[:80]!r}; other names than ours must be given in "
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
    if origin is not None and not _is_ours(origin):
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


def _asked_host() -> str:
    """Return the host that the request names, where its address is the public one."""
    asked: str = request.environ.get(ASKED_HOST, request.host)
    return asked


def _is_ours(origin: str) -> bool:
    """Whether a page of ours sent this origin: at our public URL, or where we are.

    A proxy may name the default port, which browsers leave out. Where nobody we trust
    says that the page came by TLS, it may have: then the origin's scheme holds.
    """
    site, asked = _site(origin), _asked_host()
    if site is None:
        return False
    here = [f"{request.scheme}://{request.host}"]
    if not request.is_secure or asked != request.host:
        here.append(f"{site[0]}://{asked}")
    return site in map(_site, here)


def _site(address: str) -> tuple[str, str, int] | None:
    """Return scheme, host and port of an address, None if it is none."""
    try:
        parts: SplitResult = urlsplit(address)
        port = parts.port or DEFAULT_PORTS[parts.scheme]
        host = (parts.hostname or "").removesuffix(".")
    except (ValueError, KeyError):
        return None
    return (parts.scheme, host, port) if host else None
