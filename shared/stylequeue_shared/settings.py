"""The settings of the installation: one frozen object, from the environment."""

import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from ipaddress import ip_address, ip_network
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any
from urllib.parse import quote, urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from stylequeue_shared.errors import BadConfiguration

PREFIX = "STYLEQUEUE_"
# A path under which a proxy may serve us, such as /queue.
URL_PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*/?")


def _own_home() -> Path:
    try:
        return Path.home() / ".stylequeue"
    except RuntimeError:
        # As in a container that runs as a user whom no file names.
        raise BadConfiguration(
            "STYLEQUEUE_HOME: must be set, since this user has no home folder"
        ) from None


class Settings(BaseModel):
    """Everything an operator can set; each field is `STYLEQUEUE_` plus its name."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )

    home: Path = Field(
        default_factory=_own_home,
        validate_default=True,
        description="Folder of all embedded state: database, pictures, Redis, logs.",
    )
    host: str = Field("127.0.0.1", description="Address the web server listens on.")
    port: int = Field(8000, ge=1, le=65535, description="Port of the web server.")
    # Addresses may hold a password.
    database: str | None = Field(
        None, repr=False, description="SQLAlchemy address; left out: SQLite in HOME."
    )
    redis: str | None = Field(
        None,
        repr=False,
        description="Redis address; left out: an embedded server in HOME.",
    )
    store: str | None = Field(
        None,
        description="Folder of the pictures, or s3://bucket/prefix; left out: in HOME.",
    )
    store_quota_mb: float | None = Field(
        None,
        ge=1000,
        description="Largest size of all files in the store together, in MB; left "
        "out: as much as fits. Web servers and the housekeeper need it.",
    )
    weights: str = Field(
        "bundled", description="`bundled`, `imagenet` or a safetensors file."
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="`auto`, `cpu` or `cuda:0`.",
    )
    workers: int | None = Field(
        None, ge=1, le=64, description="Workers on CPU; left out: one."
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="Torch threads per worker; left out: its own."
    )
    memory_mb: int | None = Field(
        None,
        ge=256,
        description="Memory that a worker's job may take, in MB; left out: "
        "70 % of the GPU's, or of the machine's divided by WORKERS.",
    )
    secret_key: SecretStr | None = Field(
        None, description="Signs cookies; left out on loopback: one kept in HOME."
    )
    open: bool = Field(
        False, description="1: may be reached from other machines, without accounts."
    )
    operator_token: SecretStr | None = Field(
        None,
        min_length=16,
        description="What operators show to change turns, pause the queue, drain "
        "workers; left out: nobody may.",
    )
    trusted_hosts: tuple[str, ...] = Field(
        (), description="Host names that requests may name, separated by commas."
    )
    trusted_proxies: tuple[str, ...] = Field(
        (),
        description="Addresses or networks of the reverse proxies whose "
        "`X-Forwarded-` headers hold, separated by commas.",
    )
    public_url: str | None = Field(
        None,
        description="Address under which people reach the pages, such as "
        "https://styles.example/queue; left out: as each request names it.",
    )
    lease_seconds: float = Field(
        30, ge=1, le=3600, description="How long a silent worker keeps its job."
    )
    retention_days: float = Field(
        30, gt=0, le=36500, description="Days that an ended job is kept."
    )
    max_file_mb: float = Field(
        20, gt=0, le=1024, description="Largest upload per picture, in MB."
    )
    max_megapixels: float = Field(
        50, gt=0, le=500, description="Largest upload per picture, in megapixels."
    )
    max_image_size: int = Field(
        4096, ge=32, le=8192, description="Largest `image_size` and `style_size`."
    )
    max_steps: int = Field(5000, ge=1, le=100_000, description="Largest `steps`.")
    max_waiting: int = Field(
        1000, ge=1, description="Waiting jobs above which submitting answers 503."
    )

    @field_validator("trusted_hosts", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(one.strip() for one in value.split(",") if one.strip())
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            try:
                ip_network(one)
            except ValueError as error:
                raise ValueError(
                    f"{error}; allowed are addresses and networks such as 10.0.0.7, "
                    "10.0.0.0/8 or fd00::/8"
                ) from None
        return value

    @field_validator("public_url")
    @classmethod
    def _web_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"no web address: {error}") from None
        scheme, host = parts.scheme.lower(), parts.netloc.lower()
        if (
            scheme not in ("http", "https")
            or not parts.hostname
            or port == 0
            or "@" in host
            or parts.query
            or parts.fragment
            or not URL_PATH.fullmatch(parts.path)
        ):
            raise ValueError(
                "allowed are http:// or https://, a host, maybe a port and a plain "
                "path, such as https://styles.example/queue"
            )
        return f"{scheme}://{host}{parts.path.rstrip('/')}"

    @field_validator("home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        if "\0" in str(value):
            raise ValueError("a folder's name holds no NUL")
        try:
            home = value.expanduser().absolute()
            # Else no address of a database or a socket could hold it.
            str(home).encode()
        except RuntimeError:
            raise ValueError("no such user") from None
        except UnicodeEncodeError:
            raise ValueError("a folder's name must be UTF-8") from None
        return home

    @model_validator(mode="after")
    def _open_needs_a_key(self) -> "Settings":
        if self.is_loopback:
            return self
        if not self.open:
            raise ValueError(
                f"STYLEQUEUE_OPEN: must be 1 to listen on {self.host}, since there "
                "are no accounts: whoever reaches the address can use it"
            )
        if self.secret_key is None:
            raise ValueError(
                f"STYLEQUEUE_SECRET_KEY: must be set to listen on {self.host}"
            )
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the web server."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def database_url(self) -> str:
        """The SQLAlchemy address of the database."""
        return self.database or sqlite_url(self.home / "stylequeue.db")

    @property
    def store_url(self) -> str:
        """The folder (or `s3://` address) of the pictures."""
        return self.store or str(self.home / "store")

    @property
    def redis_url(self) -> str:
        """The address of Redis; embedded: the one `stylequeue up` wrote down."""
        return self.redis or embedded_redis_url(self.home)

    @property
    def max_file_bytes(self) -> int:
        """Largest upload per picture, in bytes."""
        return int(self.max_file_mb * 1_000_000)

    @property
    def store_quota_bytes(self) -> int | None:
        """Largest size of all files in the store together, in bytes."""
        quota = self.store_quota_mb
        return None if quota is None else int(quota * 1_000_000)

    @property
    def max_pixels(self) -> int:
        """Largest upload per picture, in pixels."""
        return int(self.max_megapixels * 1_000_000)

    @cached_property
    def cookie_key(self) -> str:
        """The key that signs cookies; made once and kept privately in HOME."""
        if self.secret_key is not None:
            return self.secret_key.get_secret_value()
        return _kept_secret(self.home / "secret_key")


def embedded_redis_file(home: Path) -> Path:
    """Return the private file in which `stylequeue up` writes the server's address."""
    return home / "redis" / "address"


def embedded_redis_url(home: Path) -> str:
    """Return the address of the embedded server: as written down, or its socket."""
    try:
        return embedded_redis_file(home).read_text().strip()
    except OSError:
        return socket_url(home / "redis" / "redis.sock")


def sqlite_url(path: Path) -> str:
    """Return a file's address as SQLAlchemy reads it, which unquotes the path."""
    return f"sqlite:///{quote(str(path))}"


def socket_url(path: Path) -> str:
    """Return a socket's address as Celery reads it, which unquotes the path."""
    return f"redis+socket://{quote(str(path))}"


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Build the settings from the environment.

    Raises BadConfiguration that names the variable, what was found and what is allowed.
    """
    environment = os.environ if environment is None else environment
    _refuse_unknown(environment)
    known = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environment.items()
        # An empty variable counts as left out, as Compose files write them.
        if name.startswith(PREFIX) and value
    }
    try:
        return Settings.model_validate(known)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=True)[0]
        if first["type"] == "value_error" and not first["loc"]:
            message = str(first["msg"]).removeprefix("Value error, ")
        else:
            name = f"{PREFIX}{first['loc'][0]}".upper()
            found = "" if "KEY" in name or "TOKEN" in name else f" {first['input']!r}"
            said = str(first["msg"]).removeprefix("Value error, ")
            message = f"{name}: found{found}; {said}"
        raise BadConfiguration(message) from None


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    """Refuse a misspelt variable: silently ignoring it would surprise later."""
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields}
    for name in environment:
        if name.startswith(PREFIX) and name not in known:
            raise BadConfiguration(
                f"{name}: no such setting; the settings are {', '.join(sorted(known))}"
            )


def _kept_secret(path: Path) -> str:
    """Read the secret in `path`, making it first if it is not there.

    Raises BadConfiguration when somebody emptied the file.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole or absent, though several processes may be at it; only ours to read.
        with NamedTemporaryFile("w", dir=path.parent) as file:
            file.write(secrets.token_urlsafe(32))
            file.flush()
            with suppress(FileExistsError):
                os.link(file.name, path)
    secret = path.read_text().strip()
    if not secret:
        raise BadConfiguration(
            f"STYLEQUEUE_SECRET_KEY: {path} is empty; delete it or set the variable"
        )
    return secret
