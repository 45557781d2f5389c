"""What can go wrong, and whose fault it is, which decides retrying and the status.

StyleQueueError
|- UserError                 what was sent cannot be accepted, now or later
|  |- InvalidSetting         a job setting is unknown, out of range or contradictory
|  |- InvalidPicture         an upload is not a picture we can use
|  |- NotFound               no such job, snapshot or picture
|  `- Conflict               the job's state does not allow it
|     `- InFlight            the same submission is still at work
|- MachineError              this machine cannot do it now; another one, or later, may
|  |- QueueFull              too many jobs wait already
|  |- PictureBeingDeleted    an upload's old file is being removed right now
|  |- Busy                   as many requests of this kind run as may run at a time
|  |- DiskFull               the store or the temporary folder has too little space
|  |- NothingFits            the job does not fit into the worker's memory
|  |- OutOfMemory            memory ran out while the job ran
|  |- DeviceFailed           a GPU, or its driver, failed or hangs
|  |- WorkerLost             one worker after the other vanished with the job
|  `- LeaseLost              the job belongs to another attempt by now
`- OurError                  a defect or a bad set-up of ours
   |- BadConfiguration       an environment variable is missing or wrong
   |- NumericalError         losses or gradients stayed without finite values
   `- BadState               a saved state cannot be gone on from
"""

from typing import ClassVar


class StyleQueueError(Exception):
    """Base of all errors that StyleQueue raises on purpose."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    fault: ClassVar[str] = "ours"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class UserError(StyleQueueError):
    """Raised when what the user sent cannot be accepted."""

    code, status, fault = "invalid_request", 400, "user"


class InvalidSetting(UserError):
    """Raised when a job setting is unknown, out of range or contradicts another."""

    code, status = "invalid_setting", 422


class InvalidPicture(UserError):
    """Raised when an upload is not a picture that can be used."""

    code, status = "invalid_picture", 422


class NotFound(UserError):
    """Raised when there is no such job, snapshot or picture."""

    code, status = "not_found", 404


class Conflict(UserError):
    """Raised when the job's state does not allow the request."""

    code, status = "conflict", 409


class InFlight(Conflict):
    """Raised when another request with the same Idempotency-Key is still at work."""

    code = "in_flight"
    retry_after: ClassVar[int] = 1


class MachineError(StyleQueueError):
    """Raised when this machine cannot do it now, but another or a later try may."""

    code, status, fault = "machine", 503, "machine"
    retry_after: ClassVar[int] = 30


class QueueFull(MachineError):
    """Raised when STYLEQUEUE_MAX_WAITING jobs wait already."""

    code = "queue_full"


class Busy(MachineError):
    """Raised when as many costly requests run as this process takes at a time."""

    code = "busy"
    retry_after = 5


class DiskFull(MachineError):
    """Raised when the store or the temporary folder has too little free space."""

    code = "disk_full"
    retry_after = 300


class PictureBeingDeleted(MachineError):
    """Raised when the file of an earlier upload of a picture is being removed."""

    code = "picture_being_deleted"
    retry_after = 5


class NothingFits(MachineError):
    """Raised in a worker when a job does not fit into its memory budget."""

    code = "nothing_fits"


class OutOfMemory(MachineError):
    """Raised when memory ran out while a job ran."""

    code = "out_of_memory"

    @classmethod
    def of_the_worker(cls) -> "OutOfMemory":
        """Return the error of a job that found too little."""
        return cls(
            "The worker ran out of memory; a smaller image_size or style_size needs "
            "less."
        )


class DeviceFailed(MachineError):
    """Raised when a GPU, or its driver, failed or hangs."""

    code = "device_failed"


class WorkerLost(MachineError):
    """Raised when one worker after the other vanished with the job."""

    code = "worker_lost"


class LeaseLost(MachineError):
    """Raised in a worker when its job belongs to another attempt by now."""

    code = "lease_lost"


class OurError(StyleQueueError):
    """Raised for a defect or a bad set-up of ours."""

    code = "internal"


class UnreadableRow(OurError):
    """Raised for a row of the database that cannot be read."""


class BadConfiguration(OurError):
    """Raised when an environment variable is missing or wrong; names it."""

    code = "bad_configuration"


class NumericalError(OurError):
    """Raised when losses or gradients stay without finite values."""

    code = "not_finite"


class BadState(OurError):
    """Raised when a saved state is none, or one of another engine."""

    code = "bad_state"
