import threading
import time
from typing import Any

from sqlalchemy import event, text

from stylequeue_shared import jobs
from stylequeue_shared.database import Database
from stylequeue_shared.models import JobState
from tests.shared.jobs.given import end
from tests.shared.submitting import picture, row, submit

BLOCKED = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
PATIENCE = 60.0


def test_a_submission_and_a_deletion_of_the_same_pictures_do_not_deadlock(
    postgresql_url: str,
) -> None:
    # A submission locks its content first, by foreign key, and a deletion the picture
    # whose name comes first.
    style, content = sorted(("cat", "waves"), key=lambda name: picture(name).sha256)
    submitting, deleting = Database(postgresql_url), Database(postgresql_url)
    old = end(submitting, JobState.CANCELLED, content=content, styles=(style,))
    raised: list[Exception] = []

    def delete() -> None:
        try:
            jobs.forget(deleting, old)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=delete)

    @event.listens_for(submitting.engine, "before_cursor_execute")
    def delete_in_between(*given: Any) -> None:
        if "INSERT INTO job_styles" in given[2] and thread.ident is None:
            thread.start()
            wait_until_done_or_blocked(thread, deleting)

    new = submit(submitting, content=content, styles=(style,))
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert raised == []
    assert row(submitting, new).state == JobState.QUEUED
    assert thread.ident is not None
    submitting.close()
    deleting.close()


def wait_until_done_or_blocked(thread: threading.Thread, database: Database) -> None:
    until = time.monotonic() + PATIENCE
    while thread.is_alive() and time.monotonic() < until:
        with database.read() as connection:
            if connection.scalar(BLOCKED):
                return
        time.sleep(0.02)
