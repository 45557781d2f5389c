"""Debian's nginx before a server of ours, as docs/operating.md sets it up."""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import trustme

DOCS = Path(__file__).parents[1] / "docs" / "operating.md"
# Debian puts it where only root's PATH looks.
PLACES = "/usr/sbin:/usr/local/sbin"
MISSING = (
    "The tests of the proxy need nginx: run `make servers`, or install the package "
    "'nginx' (as root on Debian: apt-get install nginx)."
)
CONFIGURATION = """
daemon off;
user root;
worker_processes 1;
pid {folder}/pid;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {servers}
}}
"""


def documented(changes: Mapping[str, str]) -> str:
    """Return the server that the docs describe, with this test's ports and files."""
    (server,) = re.findall(r"^```nginx\n(.*?)^```", DOCS.read_text(), re.M | re.S)
    for old, new in changes.items():
        assert old in server, f"docs/operating.md no longer says {old!r}"
        server = server.replace(old, new)
    return server


def behind_tls(
    folder: Path, authority: trustme.CA, port: int, web_port: int
) -> dict[str, str]:
    """Return what to change in the documented server, and write its certificate."""
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    chain, key = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(b"".join(one.bytes() for one in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(key)
    return {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "/etc/nginx/styles.example.pem": str(chain),
        "/etc/nginx/styles.example.key": str(key),
        "styles.example": "localhost",
        "http://127.0.0.1:8000": f"http://127.0.0.1:{web_port}",
    }


@contextmanager
def running_nginx(folder: Path, servers: str) -> Iterator[None]:
    """Run nginx with these servers; fail saying what to install if there is none."""
    binary = shutil.which("nginx") or shutil.which("nginx", path=PLACES)
    assert binary, MISSING
    configuration, log = folder / "nginx.conf", folder / "nginx.log"
    configuration.write_text(CONFIGURATION.format(folder=folder, servers=servers))
    command = [binary, "-p", str(folder), "-e", str(log), "-c", str(configuration)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        # Written when it listens.
        while not (folder / "pid").exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(30)
