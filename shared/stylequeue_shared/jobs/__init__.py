"""The life of a job: every change of its state, and nothing else writes it.

queued -> running -> succeeded | failed | cancelled       paused <-> queued
   ^---------+  lease lost, or handed back by a worker       running -> paused
                that shuts down: goes on from its checkpoint

Each function is one transaction. What a worker writes is guarded by job id, attempt
and `state = 'running'`, so a worker that lost its job can change nothing.
"""

from stylequeue_shared.jobs.asking import (
    forget,
    pause_queue,
    prioritise,
    put_in_front,
    request,
    resume,
)
from stylequeue_shared.jobs.claiming import claim
from stylequeue_shared.jobs.pictures import (
    adopt_pictures,
    correct_used_at,
    finish_deletion,
    keep_pictures,
    mark_for_deletion,
    unused_pictures,
)
from stylequeue_shared.jobs.running import (
    add_snapshot,
    describe,
    fail,
    hand_back,
    renew,
    report,
    save_checkpoint,
    send_away,
    succeed,
)
from stylequeue_shared.jobs.submitting import (
    refuse_when_full,
    retry,
    submit,
)
from stylequeue_shared.jobs.sweeping import (
    discard_checkpoints,
    expire,
    expire_paused,
    foretell,
    return_lost,
    return_orphans,
)
from stylequeue_shared.jobs.terms import (
    ALIVE_SECONDS,
    MAX_FAULTS,
    MAX_LOSSES,
    Claim,
    Expected,
    Progress,
    Request,
    Result,
)
from stylequeue_shared.jobs.trash import (
    Emptying,
    discard_unknown_jobs,
    record_emptied,
    record_failure,
    trash_to_empty,
)

__all__ = [
    "ALIVE_SECONDS",
    "MAX_FAULTS",
    "MAX_LOSSES",
    "Claim",
    "Emptying",
    "Expected",
    "Progress",
    "Request",
    "Result",
    "add_snapshot",
    "adopt_pictures",
    "claim",
    "correct_used_at",
    "describe",
    "discard_checkpoints",
    "discard_unknown_jobs",
    "expire",
    "expire_paused",
    "fail",
    "finish_deletion",
    "foretell",
    "forget",
    "hand_back",
    "keep_pictures",
    "mark_for_deletion",
    "pause_queue",
    "prioritise",
    "put_in_front",
    "record_emptied",
    "record_failure",
    "refuse_when_full",
    "renew",
    "report",
    "request",
    "resume",
    "retry",
    "return_lost",
    "return_orphans",
    "save_checkpoint",
    "send_away",
    "submit",
    "succeed",
    "trash_to_empty",
    "unused_pictures",
]
