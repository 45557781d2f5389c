from stylequeue_worker.tally import Tally


def test_the_pace_is_the_median_of_what_the_last_jobs_took_by_their_estimates() -> None:
    tally = Tally()
    assert tally.pace is None
    for took in (900, 10, 20, 30, 40, 1000):
        tally.add_pace(took, 10)
    assert tally.pace == 3


def test_what_was_not_estimated_says_nothing_of_the_pace() -> None:
    tally = Tally()
    tally.add_pace(10, 0)
    assert tally.pace is None


def test_all_counts_are_given_by_name() -> None:
    tally = Tally()
    tally.starts += 1
    tally.start_seconds += 2.5
    assert tally.counts() == {
        "starts": 1,
        "start_seconds": 2.5,
        "resumes": 0,
        "checkpoints": 0,
        "checkpoint_seconds": 0.0,
        "out_of_memory": 0,
    }
