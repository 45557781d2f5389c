"""Submissions that are repeated, sent to two real web servers with one database."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import func, select, update

from bench.seaweedfs import free_ports
from stylequeue_shared.database import Database, now
from stylequeue_shared.models import Job, SubmissionKey
from stylequeue_shared.settings import Settings
from tests.system.running import Web
from tests.web.conftest import CONTENT, JOBS, STYLE
from tests.web.test_server import wait_for
from tests.web.test_uploads import MULTIPART, part

PATIENCE = 90.0
# Each picture takes a process of its own to be looked at: some seconds in all.
BODY = (
    part(b'; name="content"; filename="a"', CONTENT)
    + part(b'; name="style"; filename="b"', STYLE) * 8
    + b"--b--\r\n"
)


class Answer(NamedTuple):
    """What a submission was answered with."""

    status: int
    retry_after: str | None
    body: dict[str, Any]


def submit(server: Web, key: str = "a-key") -> Answer:
    headers = {"Content-Type": MULTIPART, "Idempotency-Key": key}
    status, found, body = server.ask(JOBS, "POST", body=BODY, headers=headers)
    return Answer(status, found.get("Retry-After"), json.loads(body))


@pytest.fixture
def servers(tmp_path: Path, database_url: str) -> Iterator[list[Web]]:
    with ExitStack() as stack:
        started = []
        for port in free_ports(2):
            server = Web(Settings(home=tmp_path, database=database_url, port=port))
            stack.callback(server.kill)
            started.append(server)
        wait_for(lambda: all(server.is_up() for server in started), PATIENCE)
        yield started


def jobs_made(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.scalars(select(Job.id)))


def in_flight(database: Database) -> bool:
    unanswered = select(func.count()).where(SubmissionKey.job_id.is_(None))
    with database.read() as connection:
        return bool(connection.scalar(unanswered))


def test_servers_that_race_with_one_key_make_one_job(
    servers: list[Web], database: Database
) -> None:
    answers: list[Answer] = []
    together = threading.Barrier(8)

    def send(server: Web) -> None:
        together.wait()
        answers.append(submit(server))

    threads = [threading.Thread(target=send, args=(one,)) for one in servers * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = Counter(answer.status for answer in answers)
    assert statuses[201] == 1
    assert statuses[200] + statuses[409] == 7
    assert all(answer.retry_after for answer in answers if answer.status == 409)
    (made,) = jobs_made(database)
    for server in servers:
        again = submit(server)
        assert (again.status, again.body["id"]) == (200, made)
    assert submit(server, "another").status == 201


def test_a_server_that_is_killed_does_not_hold_the_key_for_ever(
    servers: list[Web], database: Database
) -> None:
    first, second = servers
    lost: list[Exception] = []

    def send() -> None:
        try:
            submit(first)
        except OSError as error:
            lost.append(error)

    sending = threading.Thread(target=send)
    sending.start()
    wait_for(lambda: in_flight(database), PATIENCE)
    first.kill()
    sending.join()
    assert len(lost) == 1
    assert jobs_made(database) == []

    refused = submit(second)
    assert (refused.status, refused.body["code"]) == (409, "in_flight")
    assert refused.retry_after
    with database.write() as connection:
        connection.execute(update(SubmissionKey).values(until=now() - 1))
    made = submit(second)
    assert made.status == 201
    assert jobs_made(database) == [made.body["id"]]
