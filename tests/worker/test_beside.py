import threading
import time
from functools import partial

import pytest
import structlog
import torch

from stylequeue_worker.beside import Beside, host_copy


def test_work_in_a_thread_does_not_hold_up_what_follows() -> None:
    go, done = threading.Event(), threading.Event()

    def work() -> None:
        go.wait(10)
        done.set()

    with Beside(in_thread=True) as beside:
        beside.do(work)
        assert not done.is_set()
        go.set()
        beside.wait()
        assert done.is_set()


def test_without_a_thread_work_is_done_at_once() -> None:
    found: list[int] = []
    with Beside(in_thread=False) as beside:
        beside.do(lambda: found.append(threading.get_ident()))
        assert found == [threading.get_ident()]


@pytest.mark.parametrize("in_thread", [True, False])
def test_work_is_done_in_the_order_given_and_all_of_it_at_the_end(
    in_thread: bool,
) -> None:
    found: list[int] = []

    def work(number: int) -> None:
        # The first is the slowest.
        time.sleep(0.05 / (number + 1))
        found.append(number)

    with Beside(in_thread=in_thread) as beside:
        for number in range(5):
            beside.do(partial(work, number))
    assert found == [0, 1, 2, 3, 4]


def test_what_work_raised_comes_out_at_the_next_work_and_once() -> None:
    def fail() -> None:
        raise OSError("full")

    with Beside(in_thread=True) as beside:
        beside.do(fail)
        with pytest.raises(OSError, match="full"):
            beside.do(lambda: None)
        beside.wait()
        beside.do(fail)
        with pytest.raises(OSError, match="full"):
            beside.wait()
        beside.wait()


def test_log_lines_of_the_thread_name_the_job() -> None:
    found: list[object] = []
    bound = structlog.contextvars.bound_contextvars(job="a")
    with bound, Beside(in_thread=True) as beside:
        beside.do(lambda: found.append(structlog.contextvars.get_contextvars()))
    assert found == [{"job": "a"}]


def test_a_picture_on_the_host_is_not_copied() -> None:
    picture = torch.rand(1, 3, 4, 4)
    assert host_copy(picture)() is picture


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_picture_on_a_gpu_arrives_as_it_was() -> None:
    picture = torch.rand(1, 3, 64, 64, device="cuda")
    copied = host_copy(picture)()
    assert copied.is_pinned()
    assert torch.equal(copied, picture.cpu())
