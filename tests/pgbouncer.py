"""A real PgBouncer in transaction mode, in front of the server of the tests."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy.engine import make_url

# Fewer sessions of the server than clients have connections: clients share them.
SESSIONS = 2
START_SECONDS = 30.0

CONFIGURATION = """
[databases]
* = host={host} port={port} user=postgres

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {sessions}
max_client_conn = 200
"""


@contextmanager
def pgbouncer(server: str) -> Iterator[str]:
    """Start it and yield the address of the same database through it."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program, "This test needs PgBouncer; install it with: apt install pgbouncer"
    direct, port = make_url(server), _free_port()
    address = direct.set(host="127.0.0.1", port=port, query={})
    url = address.render_as_string(hide_password=False)
    # Not pytest's folder: PgBouncer is another user where root runs the tests.
    with tempfile.TemporaryDirectory(prefix="sq-") as folder:
        configuration = Path(folder, "pgbouncer.ini")
        configuration.write_text(
            CONFIGURATION.format(
                host=direct.query["host"],
                port=direct.port or 5432,
                listen=port,
                sessions=SESSIONS,
            )
        )
        owner = Path(str(direct.query["host"])).owner()
        user = None
        if os.geteuid() == 0:
            # PgBouncer refuses to run as root.
            shutil.chown(folder, owner)
            user = owner
        process = subprocess.Popen([program, "-q", str(configuration)], user=user)
        try:
            _wait_for(url, process)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def _wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            psycopg.connect(url.replace("+psycopg", "")).close()
            return
        except psycopg.OperationalError:
            status = process.poll()
            assert status is None, f"PgBouncer ended with status {status}"
            assert time.monotonic() < deadline, "PgBouncer does not answer"
            time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
