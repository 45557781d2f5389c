import pytest
import torch

from stylequeue_shared.estimates import Speed, operations
from stylequeue_worker import speed as speed_module
from stylequeue_worker.speed import measure
from tests.worker.engine.tiny import settings, tiny_network


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(speed_module, "PROBE_SECONDS", 0.02)


def test_evaluations_in_both_precisions_and_memory_are_measured():
    found = measure(tiny_network(), fast_low=True)
    assert min(vars(found).values()) > 1e6
    assert found.operations_per_second != found.low_operations_per_second


def test_where_bfloat16_is_slow_it_is_not_measured():
    assert measure(tiny_network(), fast_low=False).low_operations_per_second is None


def test_the_fastest_of_several_runs_counts(monkeypatch):
    took = iter([5.0, 0.01, 0.003, 0.02, 1.0])
    monkeypatch.setattr(speed_module, "PROBE_SECONDS", 5.02)
    monkeypatch.setattr(speed_module, "_seconds", lambda *_: next(took))
    assert speed_module._fastest(lambda: None, torch.device("cpu")) == 0.003


def test_a_slow_machine_is_not_kept_from_its_work(monkeypatch):
    runs = []
    monkeypatch.setattr(speed_module, "_seconds", lambda *_: runs.append(1) or 9.0)
    measure(tiny_network(), fast_low=True)
    assert len(runs) == 3


def test_rates_are_work_by_time(monkeypatch):
    monkeypatch.setattr(speed_module, "_fastest", lambda *_: 0.5)
    found = measure(tiny_network(), fast_low=True)
    work = operations(settings(), (256, 256))
    # 43 pairs of 24 bytes a pixel are 64 MB; they are read twice.
    assert found == Speed(work / 0.5, work / 0.5, 2 * 43 * 24 * 256**2 / 0.5)


def test_the_measurement_draws_nothing_that_jobs_could_miss():
    before = torch.random.get_rng_state()
    measure(tiny_network(), fast_low=False)
    assert torch.equal(torch.random.get_rng_state(), before)
