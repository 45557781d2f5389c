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
    keep_pictures,
    refuse_when_full,
    retry,
    submit,
)
from stylequeue_shared.jobs.sweeping import (
    ended_with_checkpoint,
    expire,
    foretell,
    forget_checkpoint,
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

__all__ = [
    "ALIVE_SECONDS",
    "MAX_FAULTS",
    "MAX_LOSSES",
    "Claim",
    "Expected",
    "Progress",
    "Request",
    "Result",
    "add_snapshot",
    "claim",
    "describe",
    "ended_with_checkpoint",
    "expire",
    "fail",
    "foretell",
    "forget",
    "forget_checkpoint",
    "hand_back",
    "keep_pictures",
    "pause_queue",
    "prioritise",
    "put_in_front",
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
]
