import os
from pathlib import Path

import pytest

from stylequeue_worker import faults
from stylequeue_worker.faults import Faults


@pytest.fixture
def kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the system counts whom it killed for memory."""
    path = tmp_path / "vmstat"
    path.write_text("nr_free_pages 10\noom_kill 4\n")
    monkeypatch.setattr(faults, "KILLS", (tmp_path / "none", path))
    return path


def test_jobs_that_fail_are_counted_until_one_goes_well(kills: Path) -> None:
    seen = Faults()
    for job, failed, expected in (
        *(("a", True, 1), ("b", None, 1), ("c", True, 2)),
        # Tried once more, since there is no other worker: that tells nothing new.
        *(("c", True, 2), ("d", False, 0), ("c", True, 1)),
    ):
        seen.begin(job)
        seen.end(failed=failed)
        assert seen.in_a_row == expected


def test_a_child_that_was_killed_for_memory_leaves_that_behind(kills: Path) -> None:
    seen = Faults()
    seen.begin("a job")
    kills.write_text("oom_kill 5\n")
    cause = seen.bury()
    assert cause is not None
    assert (cause.code, cause.fault) == ("out_of_memory", "machine")
    assert (seen.in_a_row, seen.kills_for_memory) == (1, 1)
    # Once: the next child begins anew.
    assert seen.bury() is None
    assert seen.kills_for_memory == 1


def test_a_child_that_was_killed_otherwise_leaves_no_reason(kills: Path) -> None:
    seen = Faults()
    seen.begin("a job")
    assert seen.bury() is None
    assert seen.in_a_row == 0


def test_who_else_was_killed_while_no_job_ran_does_not_matter(kills: Path) -> None:
    seen = Faults()
    seen.begin("a job")
    seen.end(failed=False)
    kills.write_text("oom_kill 5\n")
    assert seen.bury() is None


def test_a_container_s_own_count_is_taken_before_that_of_the_machine(
    kills: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = kills.with_name("memory.events")
    own.write_text("low 0\noom 0\noom_kill 0\n")
    monkeypatch.setattr(faults, "KILLS", (own, kills))
    seen = Faults()
    seen.begin("a job")
    kills.write_text("oom_kill 5\n")
    assert seen.bury() is None
    seen.begin("a job")
    own.write_text("low 0\noom 1\noom_kill 1\n")
    assert seen.bury() is not None


def test_a_system_that_counts_nothing_gives_no_reason(
    kills: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills.write_text("nr_free_pages 10\n")
    seen = Faults()
    seen.begin("a job")
    assert seen.bury() is None


def test_what_a_child_noted_is_known_to_its_successor(kills: Path) -> None:
    seen = Faults()
    child = os.fork()
    if not child:
        seen.begin("a job")
        seen.note_hanging()
        os._exit(0)
    os.waitpid(child, 0)
    cause = seen.bury()
    assert cause is not None
    assert cause.code == "device_failed"
    assert seen.in_a_row == 1
