"""The life of an uploaded picture: kept by submissions, deleted when unused.

A picture has a row here and a file in the store, and no transaction spans both. Two
rules make each submission end with its file present:

1. A submission keeps its pictures (`keep_pictures`), stores the files that are missing,
   and holds the pictures (`hold_pictures`) in the transaction that records the job.
2. A deletion marks the row, commits, deletes the file, and deletes the row.

Why this holds in each order of events:

- Only a picture that no job refers to, and that nobody kept for an hour, is marked. The
  condition is part of the UPDATE that marks it, which locks the row.
- While the mark is valid nobody can keep or hold the picture. So a submission looks for
  the file before the mark, when its keeping prevents the mark for an hour, or after the
  end of the deletion, when the file is gone and it stores the file again.
- A submission that stands still for more than an hour after keeping may find its
  picture marked or gone: to hold it fails, no job is recorded, the client tries again.
- A deletion marks the row again right before it deletes the file, which fails if
  somebody else has passed the first mark. The mark is valid for longer than any call to
  the store may take, so no such call is under way when somebody passes the mark.
- When the housekeeper dies in between, or a file cannot be deleted, the mark runs out
  by itself. Whoever comes next looks whether the file is there.
- Each deletion has a name of its own. When another one, or a submission, has passed its
  mark, it finishes nothing, so it cannot delete the row that is theirs now.

Web servers of the release before know nothing of marks. They may only collide with a
deletion in the moment between its second mark and the call to the store; the second
mark and the end of the deletion see that such a server kept the picture.
"""

import time
from collections.abc import Collection, Sequence

from sqlalchemy import ColumnElement, Connection, delete, exists, or_, select, update

from stylequeue_shared.database import Database, now, upsert
from stylequeue_shared.decoding import Inspected
from stylequeue_shared.errors import PictureBeingDeleted
from stylequeue_shared.models import Job, JobStyle, Picture

UNUSED_SECONDS = 3600.0
# A mark is valid for longer than the two calls to the store after it may take.
MARK_SECONDS = 180.0
# A deletion usually takes milliseconds, for which a submission waits.
PATIENCE_SECONDS = 2.0
LOOK_SECONDS = 0.05


def keep_pictures(
    database: Database,
    pictures: Sequence[Inspected],
    patience: float = PATIENCE_SECONDS,
) -> None:
    """Record pictures as used now; call it before their files are looked for.

    From here on the housekeeper leaves them alone for an hour. One that is being
    deleted is waited for, up to `patience` seconds. Raises PictureBeingDeleted.
    """
    until = time.monotonic() + patience
    # In order: two that lock the same pictures must not wait for each other.
    ordered = sorted(set(pictures), key=lambda picture: picture.sha256)
    while True:
        try:
            with database.write() as connection:
                for picture in ordered:
                    _keep(connection, picture)
            return
        except PictureBeingDeleted:
            if time.monotonic() >= until:
                raise
        time.sleep(LOOK_SECONDS)


def hold_pictures(connection: Connection, shas: Collection[str]) -> None:
    """Use pictures that were kept, in the transaction that records their job.

    Raises PictureBeingDeleted.
    """
    found = connection.scalars(
        select(Picture.sha256)
        # Not even by a mark that ran out: its deletion began after the keeping.
        .where(Picture.sha256.in_(shas), Picture.deleting_by.is_(None))
        .order_by(Picture.sha256)
        .with_for_update(key_share=True)
    ).all()
    if len(found) < len(set(shas)):
        raise _being_deleted()
    # The lock alone would not do: a deletion that waits for it would go on with what
    # it saw before, unless it finds the row changed.
    here = update(Picture).where(Picture.sha256.in_(found))
    connection.execute(here.values(used_at=now()))


def unused_pictures(database: Database, limit: int = 100) -> list[str]:
    """Return pictures to delete; those where it failed before come last."""
    wanted = (
        select(Picture.sha256)
        .where(*_is_unused(), ~_is_marked())
        .order_by(Picture.deleting_until.is_not(None), Picture.deleting_until)
        .limit(limit)
    )
    with database.read() as connection:
        return list(connection.scalars(wanted))


def mark_for_deletion(database: Database, sha256: str, by: str) -> bool:
    """Mark a picture as being deleted, if it is unused; return whether it was.

    `by` names the deletion, which may mark it again.
    """
    with database.write() as connection:
        marked = connection.execute(
            update(Picture)
            .where(
                Picture.sha256 == sha256,
                *_is_unused(),
                or_(Picture.deleting_by == by, ~_is_marked()),
            )
            .values(deleting_by=by, deleting_until=now() + MARK_SECONDS)
        )
        return bool(marked.rowcount)


def finish_deletion(database: Database, sha256: str, by: str) -> bool:
    """Delete the row of a picture whose file is deleted; return whether it was."""
    with database.write() as connection:
        deleted = connection.execute(
            delete(Picture).where(
                Picture.sha256 == sha256, Picture.deleting_by == by, *_is_unused()
            )
        )
        return bool(deleted.rowcount)


def adopt_pictures(database: Database, shas: Collection[str]) -> list[str]:
    """Record files that have no row as pictures, which are deleted when unused.

    So a submission of the same picture that comes now is safe. Returns those adopted.
    """
    undescribed = {"media_type": "", "width": 0, "height": 0, "bytes": 0}
    with database.write() as connection:
        wanted = select(Picture.sha256).where(Picture.sha256.in_(shas))
        unknown = sorted(set(shas) - set(connection.scalars(wanted)))
        for sha256 in unknown:
            row = upsert(connection, Picture).values(
                sha256=sha256, used_at=now(), **undescribed
            )
            connection.execute(row.on_conflict_do_nothing())
    return unknown


def correct_used_at(database: Database) -> None:
    """Start the hour anew of pictures whose last use lies ahead.

    A clock that was ahead and is right again leaves such times behind.
    """
    ahead = update(Picture).where(Picture.used_at > now() + UNUSED_SECONDS)
    with database.write() as connection:
        connection.execute(ahead.values(used_at=now()))


def _keep(connection: Connection, picture: Inspected) -> None:
    described = {
        "media_type": picture.media_type,
        "width": picture.width,
        "height": picture.height,
        "bytes": picture.bytes,
        "used_at": now(),
    }
    row = upsert(connection, Picture).values(sha256=picture.sha256, **described)
    kept = connection.scalar(
        row.on_conflict_do_update(
            index_elements=[Picture.sha256],
            set_=described | {"deleting_by": None, "deleting_until": None},
            where=~_is_marked(),
        ).returning(Picture.sha256)
    )
    if kept is None:
        raise _being_deleted()


def _is_unused() -> tuple[ColumnElement[bool], ...]:
    """Whether no job refers to a picture, an hour after the last one did."""
    return (
        Picture.used_at < now() - UNUSED_SECONDS,
        ~exists().where(Job.content_sha == Picture.sha256),
        ~exists().where(JobStyle.sha256 == Picture.sha256),
    )


def _is_marked() -> ColumnElement[bool]:
    """Whether a deletion is under way."""
    return (
        Picture.deleting_by.is_not(None)
        & (Picture.deleting_until > now())
        # A mark further ahead than it could have been set is of a clock that was
        # ahead; it is not believed.
        & (Picture.deleting_until < now() + 2 * MARK_SECONDS)
    )


def _being_deleted() -> PictureBeingDeleted:
    return PictureBeingDeleted(
        "An earlier upload of this picture is being deleted at this moment; "
        "please try again."
    )
