"""The slots that costly requests of one web process share.

Polls, cancels and health checks take a millisecond each and find a free thread as long
as submissions and renditions hold no more than these; server.THREADS counts them.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from stylequeue_shared.errors import Busy

UPLOADS = 6
RENDITIONS = 6
# A browser asks for all pictures of a gallery's page at once, and leaves those of the
# page before unread, which are made all the same.
WAITING_RENDITIONS = 32
WAITING_SECONDS = 20.0
# How long a request waits for the rendition that another one makes.
RENDITION_SECONDS = 60.0


class Slots:
    """A number of requests that may run at a time, and a number that may wait."""

    def __init__(self, number: int, what: str, waiting: int = 0) -> None:
        self._places = threading.BoundedSemaphore(number + waiting)
        self._free = threading.BoundedSemaphore(number)
        also = f", and {waiting} more wait" if waiting else ""
        self._message = (
            f"The server is at work on {number} {what} already, which is all it does "
            f"at a time{also}; try again in a few seconds."
        )

    def take(self) -> None:
        """Take a slot, after a wait if there is room to wait. Raises Busy."""
        if not self._places.acquire(blocking=False):
            raise Busy(self._message)
        if not self._free.acquire(timeout=WAITING_SECONDS):
            self._places.release()
            raise Busy(self._message)

    def give_back(self) -> None:
        """Free the slot for another request."""
        self._free.release()
        self._places.release()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold a slot for a while. Raises Busy."""
        self.take()
        try:
            yield
        finally:
            self.give_back()


class SingleFlight:
    """Has one request do what several want at the same time; the others wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, Future[None]] = {}

    def do(self, key: str, work: Callable[[], None]) -> None:
        """Do the work, or wait for the request that does it under the same key.

        Raises what the work raised, and Busy when it takes too long.
        """
        with self._lock:
            running = self._running.get(key)
            if running is None:
                ours = self._running[key] = Future()
        if running is not None:
            self._wait(running)
            return
        try:
            work()
        except BaseException as error:
            ours.set_exception(error)
            raise
        else:
            ours.set_result(None)
        finally:
            with self._lock:
                del self._running[key]

    def _wait(self, running: "Future[None]") -> None:
        try:
            running.result(RENDITION_SECONDS)
        except TimeoutError:
            raise Busy(
                "The server is still making this picture; try again in a few seconds."
            ) from None


class Admission:
    """The slots of one web process."""

    def __init__(self) -> None:
        self.uploads = Slots(UPLOADS, "submissions")
        self.renditions = Slots(RENDITIONS, "pictures", WAITING_RENDITIONS)
        self.flights = SingleFlight()
