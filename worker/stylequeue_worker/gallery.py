"""The pictures of one attempt: its snapshots and its result, in the store."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import structlog
import torch
from PIL import Image

from stylequeue_shared import images, jobs
from stylequeue_shared.artefacts import (
    PREVIEW_SIZE,
    rendition_key,
    result_key,
    snapshot_key,
)
from stylequeue_shared.database import OUTAGE
from stylequeue_shared.errors import LeaseLost, MachineError
from stylequeue_shared.store import Store
from stylequeue_worker import pictures
from stylequeue_worker.lease import Lease
from stylequeue_worker.patience import Patience

log = structlog.get_logger()


class Gallery:
    """Stores pictures, each as a file first, and names them in the job after that.

    `made_with` is read whenever a picture is stored: it goes into the file.
    """

    def __init__(
        self,
        held: jobs.Claim,
        lease: Lease,
        store: Store,
        patience: Patience,
        made_with: Mapping[str, Any],
    ) -> None:
        self._held = held
        self._settings = held.settings
        self._lease = lease
        self._store = store
        self._patience = patience
        self._made_with = made_with

    def add_snapshot(
        self,
        image: Callable[[], torch.Tensor],
        progress: jobs.Progress,
        content: Image.Image,
    ) -> None:
        """Store a snapshot, then name it. A preview may be dropped, so this may.

        Raises LeaseLost.
        """
        key = snapshot_key(self._held.job_id, self._held.attempt, progress.step)
        try:
            picture = pictures.finish(image(), content, self._settings)
            self._put(key, images.encode_png(picture, self._text()), picture)
            self._name_snapshot(key, progress, picture.size)
        except LeaseLost:
            raise
        except (*OUTAGE, OSError, MachineError) as error:
            log.warning("snapshot_dropped", step=progress.step, error=str(error))
        else:
            log.info("snapshot_saved", **vars(progress))

    def add_last_snapshot(
        self,
        image: torch.Tensor,
        progress: jobs.Progress,
        content: Image.Image,
        result: jobs.Result,
    ) -> None:
        """Add the snapshot of the last step. Raises LeaseLost."""
        if self._settings.result_format != "png":
            self.add_snapshot(lambda: image, progress, content)
            return
        # It is the result: one file, named twice.
        try:
            size = (result.width, result.height)
            self._name_snapshot(result.key, progress, size)
        except OUTAGE as error:
            log.warning("snapshot_dropped", step=progress.step, error=str(error))

    def store_result(
        self, image: torch.Tensor, content: Image.Image
    ) -> jobs.Result | None:
        """Store the result, tried for a minute; None if told to shut down meanwhile.

        Raises LeaseLost, and MachineError when the store stays out of reach.
        """
        key, data, picture = self._result(image, content)
        for is_last in self._patience.tries():
            try:
                self._put(key, data, picture)
            except (OSError, MachineError) as error:
                log.warning("result_not_stored", error=str(error))
                if not is_last:
                    continue
                if isinstance(error, MachineError):
                    raise
                raise MachineError(
                    "The store did not take the result "
                    f"({type(error).__name__}), tried for a minute."
                ) from error
            return jobs.Result(key, picture.width, picture.height)
        return None

    def store_partial(
        self, image: torch.Tensor, content: Image.Image
    ) -> jobs.Result | None:
        """Store the picture of a job that fails: better than none at all.

        Tried once; None when it could not be done.
        """
        try:
            key, data, picture = self._result(image, content)
            self._put(key, data, picture)
        except Exception:
            # Whatever ended the job may be in the way of this, too.
            log.warning("partial_result_dropped", exc_info=True)
            return None
        return jobs.Result(key, picture.width, picture.height, partial=True)

    def _result(
        self, image: torch.Tensor, content: Image.Image
    ) -> tuple[str, bytes, Image.Image]:
        """Return the key of the result, its file, and the picture in 8 bits."""
        suffix = self._settings.result_suffix
        return (
            result_key(self._held.job_id, self._held.attempt, suffix),
            pictures.encode_result(image, content, self._settings, self._text()),
            pictures.finish(image, content, self._settings),
        )

    def _name_snapshot(
        self, key: str, progress: jobs.Progress, size: tuple[int, int]
    ) -> None:
        self._lease.write(
            partial(jobs.add_snapshot, key=key, progress=progress, size=size)
        )

    def _text(self) -> dict[str, str]:
        return pictures.description(self._settings, self._made_with)

    def _put(self, key: str, data: bytes, picture: Image.Image) -> None:
        """Store the file of a picture and its preview."""
        self._store.put(key, data)
        preview = images.encode_jpeg(images.shrink(picture, PREVIEW_SIZE))
        self._store.put(rendition_key(key, PREVIEW_SIZE), preview)
