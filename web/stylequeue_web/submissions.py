"""A submission, by form or API: everything is checked before anything is kept."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from werkzeug.datastructures import FileStorage

from stylequeue_shared import free_space, jobs
from stylequeue_shared.artefacts import original_key
from stylequeue_shared.decoding import Inspected, inspect
from stylequeue_shared.errors import InvalidPicture
from stylequeue_shared.estimates import least_bytes
from stylequeue_shared.job_settings import (
    MAX_STYLES,
    check_fits,
    complete_settings,
    parse_settings,
    style_fields,
)
from stylequeue_shared.once import Once, once
from stylequeue_shared.turns import Priority
from stylequeue_web.forecasts import forecast
from stylequeue_web.services import Services
from stylequeue_web.uploads import MAX_FILES, is_cut_off, is_dropped


class Submitted(NamedTuple):
    """The job of a submission."""

    job_id: str
    # Whether it was recorded now, and not by an earlier request with the same key.
    is_new: bool


def submit(
    services: Services,
    content: FileStorage,
    styles: Sequence[FileStorage],
    settings: str | bytes | None,
    *,
    priority: Priority = "normal",
    owner: str = "",
    key: str | None = None,
) -> Submitted:
    """Check and store the pictures, record the job, wake a worker; return its id.

    A `key` that gave a job before, of the same pictures and settings, gives that again.
    Raises InvalidPicture and InvalidSetting naming the field, QueueFull, DiskFull, and
    Conflict for a key of another submission; then nothing is stored or recorded.
    """
    given = (services, content, styles, settings, priority, owner)
    if key is None:
        return _submit(*given, None)
    with once(services.database, f"{owner} {key}") as held:
        return _submit(*given, held)


def _submit(
    services: Services,
    content: FileStorage,
    styles: Sequence[FileStorage],
    settings: str | bytes | None,
    priority: Priority,
    owner: str,
    held: Once | None,
) -> Submitted:
    installation = services.settings
    if held is None or held.job_id is None:
        _refuse_without_room(services)
    if not 1 <= len(styles) <= MAX_STYLES:
        raise InvalidPicture(
            f"style: found {len(styles)} pictures; allowed are 1 to {MAX_STYLES}",
            field="style",
        )
    parsed = parse_settings(settings)
    completed = complete_settings(
        parsed,
        styles=len(styles),
        max_image_size=installation.max_image_size,
        max_steps=installation.max_steps,
    )
    fields = ["content", *style_fields(len(styles))]
    with TemporaryDirectory(prefix="stylequeue-") as folder:
        paths = [Path(folder, str(number)) for number in range(len(fields))]
        found = [
            _inspect(services, file, field, path)
            for file, field, path in zip([content, *styles], fields, paths, strict=True)
        ]
        shas = [picture.sha256 for picture in found]
        # Of what was given: what is left out, such as the seed, is drawn each time.
        digest = _digest([parsed, priority, *shas])
        if held is not None and (first := held.repeats(digest)) is not None:
            return Submitted(first, is_new=False)
        sizes = [(picture.width, picture.height) for picture in found]
        check_fits(completed, sizes[0], sizes[1:])
        expected = forecast(services.database, completed, sizes[0], sizes[1:])
        _store(services, found, paths)
    job_id = jobs.submit(
        services.database,
        completed,
        shas[0],
        shas[1:],
        max_waiting=installation.max_waiting,
        estimate=expected,
        least_bytes=least_bytes(completed, sizes[0]),
        priority=priority,
        owner=owner,
        repeats=None if held is None else (held, digest),
    )
    # If Redis is down the housekeeper sends the wake-up later.
    services.bell.ring(job_id)
    return Submitted(job_id, is_new=True)


def keep(services: Services, file: FileStorage, field: str) -> str:
    """Check and store a picture for a submission to come; return its SHA-256.

    It is deleted after an hour unless a job uses it. Raises as `submit` does.
    """
    _refuse_without_room(services)
    with TemporaryDirectory(prefix="stylequeue-") as folder:
        path = Path(folder, "0")
        found = _inspect(services, file, field, path)
        _store(services, [found], [path])
    return found.sha256


def _store(
    services: Services, found: Sequence[Inspected], paths: Sequence[Path]
) -> None:
    """Store the pictures that are not stored yet, and record them as used."""
    jobs.keep_pictures(services.database, found)
    for picture, path in zip(found, paths, strict=True):
        key = original_key(picture.sha256)
        if not services.store.exists(key):
            services.store.put(key, path)
            free_space.add_used(services.database, services.settings, picture.bytes)


def _digest(given: object) -> str:
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()


def _refuse_without_room(services: Services) -> None:
    """Raise QueueFull or DiskFull when no further job can be taken."""
    with services.database.read() as connection:
        jobs.refuse_when_full(connection, services.settings.max_waiting)
    quota = services.settings.store_quota_bytes
    free_space.check(services.database, services.store, quota)


def _inspect(
    services: Services, file: FileStorage, field: str, path: Path
) -> Inspected:
    settings = services.settings
    if is_dropped(file):
        raise InvalidPicture(
            f"{field}: found more than {MAX_FILES} files in one submission; allowed "
            f"are 1 content picture and {MAX_STYLES} style pictures",
            field=field,
        )
    if is_cut_off(file):
        raise InvalidPicture(
            f"{field}: found a file of more than {settings.max_file_mb:g} MB; "
            f"allowed are at most {settings.max_file_mb:g} MB",
            field=field,
        )
    file.save(path)
    file.close()  # a second copy would need as much of the temporary folder again
    return inspect(
        path,
        field=field,
        max_bytes=settings.max_file_bytes,
        max_pixels=settings.max_pixels,
    )
