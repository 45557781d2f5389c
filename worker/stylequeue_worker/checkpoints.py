"""Where a job stands, in the store and in its row: what another worker goes on from."""

import time
from collections.abc import Callable
from functools import partial

import structlog

from stylequeue_shared import jobs
from stylequeue_shared.artefacts import state_key
from stylequeue_shared.database import OUTAGE
from stylequeue_shared.errors import BadState, MachineError, NotFound
from stylequeue_shared.store import Store
from stylequeue_worker.engine.state import (
    Encoded,
    State,
    decode,
    encode,
    encode_part,
)
from stylequeue_worker.lease import Lease
from stylequeue_worker.tally import Tally

# To do so much work twice is no loss worth writing for.
LEAST_SECONDS = 10.0
# What is spent on checkpoints: at most this share of the time.
SHARE = 1 / 25
# Bytes a second that a store is thought to take before it has shown its own pace.
GUESS = 50e6
# A state's record.
RECORD = "record"

log = structlog.get_logger()


class Checkpoints:
    """Saves the states of one attempt, each time only what is new in it."""

    def __init__(
        self,
        held: jobs.Claim,
        lease: Lease,
        store: Store,
        tally: Tally,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._held = held
        self._lease = lease
        self._store = store
        self._tally = tally
        self._clock = clock
        self._since = clock()
        self._took = 0.0
        self._pace = GUESS
        # The parts of this attempt's that are in the store.
        self._stored: set[str] = set()
        # The record that the row names: of this attempt, or of an earlier one.
        self._record: str | None = None
        self._earlier = held.checkpoint

    @property
    def is_due(self) -> bool:
        """Whether doing the work since the last one again would cost more than it."""
        since = self._clock() - self._since
        return since > LEAST_SECONDS and since * SHARE > self._took

    def load(self) -> State | None:
        """Return the state to go on from; None to start anew.

        Raises MachineError when the store does not give it.
        """
        if self._held.checkpoint is None:
            return None
        folder, _, _ = self._held.checkpoint.rpartition("/")
        try:
            record = self._store.get(self._held.checkpoint)
            state = decode(record, lambda name: self._store.get(f"{folder}/{name}"))
        except (BadState, NotFound) as error:
            # Of another version, or gone: the job is not, it only takes longer.
            log.warning("checkpoint_not_usable", error=error.message)
            return None
        log.info("checkpoint_loaded", step=state.step)
        self._tally.resumes += 1
        return state

    def seconds_for(self, state: State) -> float:
        """Return about how long saving the state would take."""
        new = (one for name, one in encode(state).parts.items() if self._is_new(name))
        return sum(one.numel() * one.element_size() for one in new) / self._pace

    def saving(self, state: State) -> Callable[[], None]:
        """Return what saves the state when it is called; no other is due meanwhile."""
        self._since = self._clock()

        def run() -> None:
            self.save(state)

        return run

    def save(self, state: State) -> bool:
        """Store the state, then name it in the row; return whether it could be done.

        Raises LeaseLost.
        """
        began, size = self._clock(), 0
        encoded = encode(state)
        record = self._key(f"{RECORD}-{state.step}")
        try:
            for name, tensor in encoded.parts.items():
                if self._is_new(name):
                    self._store.put(self._key(name), data := encode_part(tensor))
                    self._stored.add(name)
                    size += len(data)
            self._store.put(record, encoded.record)
            self._lease.write(
                partial(jobs.save_checkpoint, key=record, step=state.step)
            )
        except (*OUTAGE, OSError, MachineError) as error:
            # The job goes on, and so does the attempt to save it, some seconds later.
            log.warning("checkpoint_not_saved", step=state.step, error=str(error))
            self._since = self._clock()
            return False
        self._since = began
        self._took = self._clock() - began
        if size > self._took:
            self._pace = size / max(self._took, 1e-3)
        self._tally.checkpoints += 1
        self._tally.checkpoint_seconds += self._took
        log.info("checkpoint_saved", step=state.step, seconds=round(self._took, 3))
        self._tidy(encoded, record)
        return True

    def _is_new(self, name: str) -> bool:
        return name not in self._stored

    def _key(self, name: str) -> str:
        return state_key(self._held.job_id, self._held.attempt, name)

    def _tidy(self, newest: Encoded, record: str) -> None:
        """Remove what the row needs no longer. What is left here goes with the job."""
        unused = [self._key(name) for name in self._stored - newest.parts.keys()]
        if self._record is not None:
            unused.append(self._record)
        try:
            for key in unused:
                self._store.delete(key)
            if self._earlier is not None:
                self._store.delete_prefix(f"{self._earlier.rpartition('/')[0]}/")
        except (OSError, MachineError) as error:
            log.warning("checkpoint_not_tidied", error=str(error))
            return
        self._stored &= newest.parts.keys()
        self._record, self._earlier = record, None
