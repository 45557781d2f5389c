import io
import json
import logging
import warnings
from collections.abc import Iterator

import pytest
import structlog

from stylequeue_shared import logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_an_event_is_one_line_of_json_off_a_terminal() -> None:
    stream = io.StringIO()
    logs.configure(stream)
    with structlog.contextvars.bound_contextvars(job="j1", attempt=2):
        structlog.get_logger("here").info("snapshot_saved", step=50)
    (line,) = lines(stream)
    event = json.loads(line)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "snapshot_saved",
        "job": "j1",
        "attempt": 2,
        "step": 50,
        "level": "info",
        "logger": "here",
    }


def test_on_a_terminal_an_event_is_for_reading() -> None:
    stream = Terminal()
    logs.configure(stream)
    structlog.get_logger().info("snapshot_saved", step=50)
    (line,) = lines(stream)
    assert "snapshot_saved" in line
    assert not line.startswith("{")


def test_other_libraries_take_the_same_road() -> None:
    stream = io.StringIO()
    logs.configure(stream)
    with structlog.contextvars.bound_contextvars(job="j1"):
        logging.getLogger("celery.worker").warning("lost %s", "it")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("odd", stacklevel=1)
    lost, odd = map(json.loads, lines(stream))
    assert (lost["event"], lost["logger"], lost["job"]) == (
        "lost it",
        "celery.worker",
        "j1",
    )
    assert "odd" in odd["event"]


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_no_password_reaches_the_log(kind: type[io.StringIO]) -> None:
    stream = kind()
    logs.configure(stream)
    address = "redis://user:hunter2@host:6379/0"
    log = structlog.get_logger()
    try:
        raise OSError(f"cannot connect to {address}")
    except OSError:
        log.exception("failed", address=address, nested={"at": [address]})
    logging.getLogger("kombu").error("Cannot connect to %s", address)
    assert "hunter2" not in stream.getvalue()
    assert stream.getvalue().count("redis://user:***@host:6379/0") >= 4


def test_a_traceback_stays_within_its_line() -> None:
    stream = io.StringIO()
    logs.configure(stream)
    try:
        raise ValueError("why")
    except ValueError:
        structlog.get_logger().exception("failed")
    (line,) = lines(stream)
    assert "ValueError: why" in json.loads(line)["exception"]


def test_configuring_twice_does_not_log_twice() -> None:
    stream = io.StringIO()
    logs.configure(stream)
    logs.configure(stream)
    structlog.get_logger().info("once")
    assert len(lines(stream)) == 1
