import pytest

from stylequeue_worker.watchdog import LEAST_SECONDS, TIMES, Watchdog


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


def test_work_that_has_not_begun_has_not_stopped(time: Time) -> None:
    dog = Watchdog(time)
    time.now += 1e6
    assert not dog.has_stopped


def test_work_without_a_beat_for_a_minute_has_stopped(time: Time) -> None:
    dog = Watchdog(time)
    with dog.watching():
        time.now += LEAST_SECONDS - 1
        assert not dog.has_stopped
        time.now += 2
        assert dog.has_stopped


def test_each_beat_gives_it_more_time(time: Time) -> None:
    dog = Watchdog(time)
    with dog.watching():
        for _ in range(10):
            time.now += LEAST_SECONDS - 1
            assert not dog.has_stopped
            dog.beat()


def test_long_steps_are_waited_for_ten_times_as_long(time: Time) -> None:
    dog = Watchdog(time)
    with dog.watching():
        time.now += 50
        dog.beat()
        time.now += TIMES * 50 - 1
        assert not dog.has_stopped
        time.now += 2
        assert dog.has_stopped


def test_what_happens_between_steps_does_not_count(time: Time) -> None:
    dog = Watchdog(time)
    for _ in range(3):
        with dog.watching():
            time.now += 1
        # Such as a store that is away for minutes.
        time.now += 1e4
        assert not dog.has_stopped


def test_an_error_ends_the_watching(time: Time) -> None:
    dog = Watchdog(time)
    with pytest.raises(RuntimeError, match="lost"), dog.watching():
        raise RuntimeError("lost")
    time.now += 1e4
    assert not dog.has_stopped
