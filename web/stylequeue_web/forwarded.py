"""The request as its client made it: behind trusted proxies, and at our public URL.

The server tells who sent the bytes, and under which host and path it was asked. Behind
a reverse proxy that is the proxy's doing, and headers tell what the client did.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from werkzeug.http import parse_list_header
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.wsgi import get_host

from stylequeue_shared.settings import URL_PATH, Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# The environment's name for the host that was asked, where HTTP_HOST is the public one.
ASKED_HOST = "stylequeue.asked_host"
# What each header may say, by the name that ProxyFix has for it.
FORWARDED = {
    "x_for": ("HTTP_X_FORWARDED_FOR", re.compile(".+")),
    "x_proto": ("HTTP_X_FORWARDED_PROTO", re.compile("https?")),
    "x_host": ("HTTP_X_FORWARDED_HOST", re.compile(r"[^\s/?#@\\]+")),
    "x_port": ("HTTP_X_FORWARDED_PORT", re.compile(r"[0-9]{1,5}")),
    "x_prefix": ("HTTP_X_FORWARDED_PREFIX", URL_PATH),
}
# Where the public URL says so, no proxy does.
PUBLIC = ("x_proto", "x_port", "x_prefix")


class ForwardedRequests:
    """WSGI middleware that believes trusted proxies, and nobody else."""

    def __init__(self, app: "WSGIApplication", settings: Settings) -> None:
        self._app = app
        self._trusted = [ip_network(one) for one in settings.trusted_proxies]
        self._public = urlsplit(settings.public_url) if settings.public_url else None

    def __call__(
        self, environ: "WSGIEnvironment", start: "StartResponse"
    ) -> Iterable[bytes]:
        hops = self._hops(environ)
        if not hops:
            return self._serve(environ, start)
        counts = {name: self._count(environ, name, hops) for name in FORWARDED}
        return ProxyFix(self._serve, **counts)(environ, start)

    def _hops(self, environ: "WSGIEnvironment") -> int:
        """Return how many proxies in a row are trusted, from our side.

        A peer without an address, as on a Unix socket, is nobody we know.
        """
        if not self._is_trusted(environ.get("REMOTE_ADDR", "")):
            return 0
        entries = _values(environ, FORWARDED["x_for"][0])
        hops = 1
        while hops < len(entries) and self._is_trusted(entries[-hops]):
            hops += 1
        return hops

    def _is_trusted(self, text: str) -> bool:
        address = read_address(text)
        return address is not None and any(address in one for one in self._trusted)

    def _count(self, environ: "WSGIEnvironment", name: str, hops: int) -> int:
        """Return from which value, counted from the right, a header holds; 0: none.

        Some proxies append to these headers and others replace them, so that there
        may be fewer values than proxies.
        """
        if self._public and name in PUBLIC:
            return 0
        header, allowed = FORWARDED[name]
        values = _values(environ, header)
        count = min(hops, len(values))
        return count if count and allowed.fullmatch(values[-count]) else 0

    def _serve(
        self, environ: "WSGIEnvironment", start: "StartResponse"
    ) -> Iterable[bytes]:
        # What is left of the headers is only what somebody claims.
        for header, _ in FORWARDED.values():
            environ.pop(header, None)
        if self._public:
            _move(environ, self._public)
        return self._app(environ, start)


def read_address(text: str) -> IPv4Address | IPv6Address | None:
    """Read an address as headers write it, maybe with a port; None if it is none."""
    host = text.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ip_address(host)
    except ValueError:
        return None
    # A socket that listens on IPv6 writes IPv4 as ::ffff:127.0.0.1.
    return getattr(address, "ipv4_mapped", None) or address


def _values(environ: "WSGIEnvironment", header: str) -> list[str]:
    return parse_list_header(environ.get(header, ""))


def _move(environ: "WSGIEnvironment", public: SplitResult) -> None:
    """Have the request made at the public URL, whichever host and path it names."""
    environ[ASKED_HOST] = get_host(environ)
    environ["HTTP_HOST"] = public.netloc
    environ["wsgi.url_scheme"] = public.scheme
    environ["SCRIPT_NAME"] = public.path
    path = environ.get("PATH_INFO", "")
    # Some proxies take the path off, and others leave it.
    if public.path and f"{path}/".startswith(f"{public.path}/"):
        environ["PATH_INFO"] = path.removeprefix(public.path) or "/"
