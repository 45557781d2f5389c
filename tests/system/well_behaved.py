"""Clients who ask, poll and submit as they should, while others do not."""

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from functools import partial

from bench.services import Client
from tests.web.conftest import JOBS
from tests.web.test_uploads import MULTIPART, WHOLE

Answer = tuple[int, dict[str, str], bytes]


def upload(client: Client) -> Answer:
    """Submit two small pictures."""
    return client.ask(JOBS, "POST", body=WHOLE, headers={"Content-Type": MULTIPART})


def submit(client: Client) -> str:
    """Submit two small pictures, which must be taken; return the job's id."""
    status, _, body = upload(client)
    assert status == 201, body
    return str(json.loads(body)["id"])


class WellBehaved:
    """Clients who ask again and again, each kind of request on a thread of its own."""

    def __init__(self, pool: Executor, clients: Sequence[Client], job: str) -> None:
        self._pool, self._clients = pool, clients
        self._ended = threading.Event()
        _, headers, _ = clients[0].ask(job)
        known = {"If-None-Match": headers["ETag"]}
        self._health = self._start(lambda one: one.ask("/healthz"), 0.1)
        self._polls = self._start(lambda one: one.ask(job, headers=known), 0.1)
        self._submissions = self._start(upload, 1.0)

    def __enter__(self) -> "WellBehaved":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def end(self) -> None:
        """Ask no more, and see how all requests were answered."""
        self._ended.set()
        assert {status for status, _, _ in _all(self._health)} == {200}
        assert {status for status, _, _ in _all(self._polls)} <= {200, 304}
        for status, headers, body in _all(self._submissions):
            assert status == 201 or (status == 503 and "Retry-After" in headers), body

    def _start(
        self, ask: Callable[[Client], Answer], pause: float
    ) -> "list[Future[list[Answer]]]":
        return [
            self._pool.submit(self._again, partial(ask, client), pause)
            for client in self._clients
        ]

    def _again(self, ask: Callable[[], Answer], pause: float) -> list[Answer]:
        answers = []
        while not self._ended.wait(pause):
            answers.append(ask())
        return answers


def _all(futures: "Sequence[Future[list[Answer]]]") -> list[Answer]:
    return [answer for one in futures for answer in one.result()]
