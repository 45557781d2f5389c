"""Work beside the steps: on a GPU's machine the processor is free while steps run."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from types import TracebackType

import torch
from torch import Tensor


class Beside:
    """Does one piece of work at a time in a thread of its own, in the order given.

    Not in a thread where steps run on the processor: there, work would take the cores
    and the memory of the steps, and is done at once instead.
    """

    def __init__(self, *, in_thread: bool) -> None:
        self._pool = ThreadPoolExecutor(1) if in_thread else None
        self._pending: Future[None] | None = None

    def __enter__(self) -> "Beside":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def do(self, work: Callable[[], None]) -> None:
        """Begin the work once that before is done. Raises what that raised."""
        self.wait()
        if self._pool is None:
            work()
        else:
            # In a copy of the context, so that log lines name the job, too.
            self._pending = self._pool.submit(copy_context().run, work)

    def wait(self) -> None:
        """Return when all work is done. Raises what it raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def host_copy(image: Tensor) -> Callable[[], Tensor]:
    """Begin to copy a picture to the host; what is returned waits for it.

    From a GPU the copy goes to pinned memory, while the steps' kernels are still being
    launched. A picture that is on the host is not copied: nothing writes to it.
    """
    if not image.is_cuda:
        return lambda: image
    copy = torch.empty(image.shape, dtype=image.dtype, pin_memory=True)
    copy.copy_(image, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()

    def waited() -> Tensor:
        done.synchronize()
        return copy

    return waited
