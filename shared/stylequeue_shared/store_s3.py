"""A store in a bucket of S3, or of a server that speaks its protocol.

Addresses, keys and certificates of the server come from the AWS_* variables, which
botocore reads by itself.
"""

import re
import shutil
import time
from asyncio import AbstractEventLoop
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import BufferedReader, RawIOBase
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any, BinaryIO

import structlog
from aiohttp import ClientError as BrokenAnswer
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from fsspec.asyn import sync
from s3fs import S3FileSystem

from stylequeue_shared.errors import (
    BadConfiguration,
    DiskFull,
    MachineError,
    NotFound,
    StyleQueueError,
)
from stylequeue_shared.store import KEY, Store, check_key, check_prefix
from stylequeue_shared.system_errors import machine_errors

ADDRESS = re.compile(
    r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])"
    r"(?P<prefix>(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)/?"
)
# Two tries, each given up when nothing comes for so long.
CONNECT_SECONDS = 5
READ_SECONDS = 10
TRIES = 2
# A call in all, since a server may also take what it is sent byte by byte.
CALL_SECONDS = 40.0
CHECK_SECONDS = 10.0
LEAST_PACE = 500_000  # bytes a second
# Larger files go up in parts, a few at a time, which is all that is held in memory.
PART_BYTES = 16 * 1024**2
PARTS_AT_ONCE = 2
# How much of a file is asked of the event loop at a time.
READ_BYTES = 256 * 1024
# Each download holds one until its client has read it all, be it slow.
CONNECTIONS = 64
CHECKED = ".check"  # no key

log = structlog.get_logger()

REFUSED = (401, 403)
# Beside status 507: of Ceph, and of MinIO.
FULL = {"QuotaExceeded", "XMinioAdminBucketQuotaExceeded"}


def open_bucket(address: str) -> "S3Store":
    """Open the store in that bucket, which need not answer yet.

    Raises BadConfiguration.
    """
    found = ADDRESS.fullmatch(address)
    if found is None:
        # Not what was found: there may be a key in it.
        raise BadConfiguration(
            "STYLEQUEUE_STORE: not an address such as s3://bucket/prefix; keys and the "
            "server's address belong into the AWS_* variables"
        )
    files = S3FileSystem(
        # Another store in this process may be given other variables.
        skip_instance_cache=True,
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "retries": {"total_max_attempts": TRIES, "mode": "standard"},
            "max_pool_connections": CONNECTIONS,
        },
    )
    # botocore has tried again already.
    files.retries = 1
    try:
        files.connect()
    except (BotoCoreError, ValueError) as error:
        raise BadConfiguration(
            "STYLEQUEUE_STORE: the AWS_* variables make no connection "
            f"({type(error).__name__})"
        ) from None
    return S3Store(files, found["bucket"], found["prefix"].removeprefix("/"))


class S3Store(Store):
    """An object for each key: S3 itself has them whole or not at all."""

    def __init__(self, files: S3FileSystem, bucket: str, prefix: str) -> None:
        self._files = files
        self._bucket = bucket
        self._root = f"{prefix}/" if prefix else ""

    def put(self, key: str, data: bytes | Path) -> None:
        path = f"{self._bucket}/{self._name(key)}"
        options = {"chunksize": PART_BYTES, "max_concurrency": PARTS_AT_ONCE}
        with _as_ours():
            if isinstance(data, Path):
                seconds = _seconds(data.stat().st_size)
                self._files.put_file(data, path, timeout=seconds, **options)
            else:
                seconds = _seconds(len(data))
                self._files.pipe_file(path, data, timeout=seconds, **options)

    def open(self, key: str) -> BinaryIO:
        answer = self._call("get_object", key)
        body = Body(self._files.loop, answer["Body"], answer["ContentLength"])
        return BufferedReader(body, READ_BYTES)

    @contextmanager
    def local(self, key: str) -> Iterator[Path]:
        with self._copied(key) as file:
            yield Path(file.name)

    def _copied(self, key: str) -> IO[bytes]:
        """Return a temporary file with the bytes, which is gone when it is closed."""
        with machine_errors():
            file = NamedTemporaryFile(prefix="stylequeue-")  # noqa: SIM115
            try:
                with self.open(key) as source:
                    shutil.copyfileobj(source, file, READ_BYTES)
                file.flush()
            except BaseException:
                with suppress(OSError):  # the rest of a file that found no room
                    file.close()
                raise
        return file

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except NotFound:
            return False
        return True

    def size(self, key: str) -> int:
        return int(self._call("head_object", key)["ContentLength"])

    def delete(self, key: str) -> None:
        self._call("delete_object", key)

    def delete_prefix(self, prefix: str) -> None:
        for page in filter(None, self._pages(check_prefix(prefix))):
            names = [{"Key": found["Key"]} for found in page]
            objects = {"Objects": names, "Quiet": True}
            answer = self._call("delete_objects", Delete=objects)
            for refused in answer.get("Errors", ()):
                raise MachineError(f"the store deletes nothing ({refused['Code']})")

    def keys(self, prefix: str = "") -> Iterator[str]:
        for page in self._pages(check_prefix(prefix) if prefix else ""):
            for found in page:
                key = found["Key"].removeprefix(self._root)
                if KEY.fullmatch(key):
                    yield key

    def delete_unfinished(self, older_than: float) -> int:
        answer = self._call("list_multipart_uploads", Prefix=self._root)
        count = 0
        for upload in answer.get("Uploads", ()):
            age = datetime.now(UTC) - upload["Initiated"]
            if age.total_seconds() >= older_than:
                count += self._abort(upload["Key"], upload["UploadId"])
        return count

    def free_bytes(self) -> int | None:
        return None

    def used_bytes(self) -> int:
        return sum(found["Size"] for page in self._pages("") for found in page)

    def check(self) -> None:
        name = f"{self._root}{CHECKED}"
        # First, since some servers make a bucket for whoever writes to it.
        self._call("list_objects_v2", MaxKeys=1, timeout=CHECK_SECONDS)
        self._call("put_object", Key=name, Body=b"a", timeout=CHECK_SECONDS)
        self._call("delete_object", Key=name, timeout=CHECK_SECONDS)

    def _abort(self, name: str, upload: str) -> bool:
        """Abort an upload in parts; return whether that worked."""
        try:
            self._call("abort_multipart_upload", Key=name, UploadId=upload)
        except StyleQueueError as error:
            # The others can be aborted all the same; this one is tried again.
            log.warning("unfinished_upload_not_deleted", error=error.message)
            return False
        return True

    def _name(self, key: str) -> str:
        return f"{self._root}{check_key(key)}"

    def _pages(self, prefix: str) -> Iterator[list[dict[str, Any]]]:
        """Yield what is told of the objects under the prefix, up to 1000 at a time."""
        where = {"Prefix": f"{self._root}{prefix}"}
        while True:
            answer = self._call("list_objects_v2", **where)
            yield answer.get("Contents", [])
            if not answer.get("IsTruncated"):
                return
            where["ContinuationToken"] = answer["NextContinuationToken"]

    def _call(self, method: str, key: str | None = None, **given: Any) -> Any:
        """Call the method of S3's interface, about the key if there is one."""
        if key is not None:
            given["Key"] = self._name(key)
        options = {"timeout": CALL_SECONDS, "Bucket": self._bucket, **given}
        with _as_ours(key):
            return self._files.call_s3(method, **options)


class Body(RawIOBase):
    """The bytes of an answer, read as they come."""

    def __init__(self, loop: AbstractEventLoop, stream: Any, size: int) -> None:
        self._loop = loop
        self._stream = stream
        # Of waiting for the server; how long our own reader takes is its business.
        self._seconds = _seconds(size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._read(None)

    def close(self) -> None:
        if not self.closed:
            # Drops the connection, if something is left to be read.
            self._loop.call_soon_threadsafe(self._stream.close)
        super().close()

    def _read(self, size: int | None) -> bytes:
        begun = time.monotonic()
        with _as_ours():
            data = sync(self._loop, self._stream.read, size, timeout=self._seconds)
        self._seconds -= time.monotonic() - begun
        return bytes(data)


def _seconds(size: int) -> float:
    return CALL_SECONDS + size / LEAST_PACE


@contextmanager
def _as_ours(key: str | None = None) -> Iterator[None]:
    try:
        yield
    except (OSError, BotoCoreError, ClientError, BrokenAnswer) as error:
        # Without the cause, whose text is the server's: it may tell keys and addresses.
        raise _ours(error, key) from None


def _ours(error: Exception, key: str | None) -> StyleQueueError:
    """Say in our words what botocore, or s3fs about it, says in theirs."""
    if isinstance(error.__cause__, ClientError):
        error = error.__cause__
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return MachineError(
            "the store needs a key: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not isinstance(error, ClientError):
        return MachineError(f"the store does not answer ({type(error).__name__})")
    code = str(error.response["Error"].get("Code"))
    status = error.response["ResponseMetadata"].get("HTTPStatusCode")
    if key is not None and code in ("NoSuchKey", "404"):
        return NotFound(f"no such file: {key}")
    if status == 507 or code in FULL:
        return DiskFull("there is no room left for pictures; try again later")
    if status in REFUSED:
        return MachineError(
            f"the store refuses us ({code}): see AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and what they may do in the bucket of "
            "STYLEQUEUE_STORE"
        )
    if code in ("NoSuchBucket", "404"):
        return MachineError("the store has no such bucket: see STYLEQUEUE_STORE")
    return MachineError(f"the store does not do what it should ({code}, {status})")
