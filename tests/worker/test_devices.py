import os
from pathlib import Path

import pytest

from stylequeue_shared.errors import BadConfiguration
from stylequeue_shared.settings import Settings
from stylequeue_worker import devices

TWO = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb)
"""
SLICED = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa)
  MIG 3g.20gb     Device  0: (UUID: MIG-one)
  MIG 3g.20gb     Device  1: (UUID: MIG-two)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbbb)
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with its own nvidia-smi, and no other program."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "DRIVERS", ())
    return tmp_path


def with_gpus(machine: Path, listing: str) -> None:
    program = machine / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '%s' '{listing}'\n")
    program.chmod(0o755)


def test_without_a_gpu_one_worker_runs_on_the_cpu(machine: Path) -> None:
    (place,) = devices.places(Settings())
    assert place.is_cpu
    assert "STYLEQUEUE_THREADS" not in place.environment


def test_several_workers_on_the_cpu_share_its_cores(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    places = devices.places(Settings(workers=3))
    assert [place.environment["STYLEQUEUE_THREADS"] for place in places] == ["2"] * 3
    places = devices.places(Settings(workers=3, threads=5))
    assert all("STYLEQUEUE_THREADS" not in place.environment for place in places)


def test_each_gpu_gets_a_worker_of_its_own(machine: Path) -> None:
    with_gpus(machine, TWO)
    places = devices.places(Settings())
    pinned = {"STYLEQUEUE_DEVICE": "cuda:0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    assert [place.environment for place in places] == [
        {"CUDA_VISIBLE_DEVICES": "GPU-aaaa", **pinned},
        {"CUDA_VISIBLE_DEVICES": "GPU-bbbb", **pinned},
    ]


def test_slices_of_a_gpu_stand_for_it() -> None:
    assert devices.parse_list(SLICED) == ["MIG-one", "MIG-two", "GPU-bbbb"]


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        ("1", ["1"]),
        ("GPU-bb", ["GPU-bb"]),
        ("1,0", ["1", "0"]),
        ("0,-1,1", ["0"]),
        ("", []),
        ("-1", []),
    ],
)
def test_what_the_operator_hides_stays_hidden(
    machine: Path, monkeypatch: pytest.MonkeyPatch, visible: str, found: list[str]
) -> None:
    with_gpus(machine, TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices.visible_gpus() == found


def test_one_gpu_can_be_chosen(machine: Path) -> None:
    with_gpus(machine, TWO)
    (place,) = devices.places(Settings(device="cuda:1"))
    assert place.environment["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb"


def test_the_cpu_can_be_chosen_beside_a_gpu(machine: Path) -> None:
    with_gpus(machine, TWO)
    (place,) = devices.places(Settings(device="cpu"))
    assert place.is_cpu
    assert place.environment["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize("device", ["cuda", "cuda:2"])
def test_a_gpu_that_is_not_there_is_refused_by_name(machine: Path, device: str) -> None:
    with_gpus(machine, TWO if device == "cuda:2" else "")
    with pytest.raises(BadConfiguration, match=f"STYLEQUEUE_DEVICE: {device}, but"):
        devices.places(Settings(device=device))


def test_a_broken_driver_counts_as_no_gpu(machine: Path) -> None:
    program = machine / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Failed to initialize NVML'; exit 9\n")
    program.chmod(0o755)
    assert devices.visible_gpus() == []
