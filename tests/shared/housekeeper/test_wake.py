from stylequeue_shared.jobs import ALIVE_SECONDS
from tests.shared.housekeeper.house import House
from tests.shared.submitting import claim, submit


def test_each_idle_worker_is_woken_for_a_waiting_job(house: House) -> None:
    ids = [submit(house.database) for _ in range(3)]
    house.beat("w1", "w2")
    house.keeper().round()
    assert house.bell.rung == ids[:2]


def test_no_more_are_woken_than_jobs_wait(house: House) -> None:
    job_id = submit(house.database)
    house.beat("w1", "w2", "w3")
    house.keeper().round()
    assert house.bell.rung == [job_id]


def test_wake_ups_that_are_in_the_queue_already_are_not_sent_again(
    house: House,
) -> None:
    for _ in range(5):
        submit(house.database)
    house.beat("w1", "w2", "w3")
    keeper = house.keeper()
    house.bell.in_queue = 2
    keeper.round()
    assert len(house.bell.rung) == 1
    house.bell.in_queue = 3
    keeper.round()
    house.bell.in_queue = 900
    keeper.round()
    assert len(house.bell.rung) == 1


def test_a_busy_worker_is_not_woken(house: House) -> None:
    submit(house.database)
    submit(house.database)
    house.beat("w1")
    claim(house.database, "w1")
    house.keeper().round()
    assert house.bell.rung == []


def test_a_worker_that_fell_silent_is_not_woken(house: House) -> None:
    submit(house.database)
    house.beat("w1")
    house.grow_old(ALIVE_SECONDS + 1)
    house.keeper().round()
    assert house.bell.rung == []


def test_a_lost_job_wakes_a_worker_in_the_same_round(house: House) -> None:
    job_id = submit(house.database)
    house.lose(job_id)
    house.beat("w2")
    house.keeper().round()
    assert house.bell.rung == [job_id]


def test_nothing_is_sent_while_nobody_knows_how_many_are_in_the_queue(
    house: House,
) -> None:
    submit(house.database)
    house.beat("w1")
    house.bell.in_queue = None
    house.keeper().round()
    assert house.bell.rung == []


def test_a_wake_up_that_cannot_be_sent_is_not_followed_by_others(house: House) -> None:
    for _ in range(3):
        submit(house.database)
    house.beat("w1", "w2", "w3")
    house.bell.refuses = True
    house.keeper().round()
    assert len(house.bell.rung) == 1
