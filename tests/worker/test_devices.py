import os
from pathlib import Path

import pytest

from stylequeue_shared.errors import BadConfiguration, MachineError
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
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "nvidiactl")
    monkeypatch.setattr(devices, "WINDOWS_GPU", tmp_path / "dxg")
    monkeypatch.setattr(devices, "RETRY_SECONDS", 0.0)
    return tmp_path


def with_gpus(machine: Path, listing: str) -> None:
    with_tool(machine, f"printf '%s' '{listing}'")


def with_tool(machine: Path, script: str) -> None:
    """Give the machine an nvidia-smi, which notes each call of it."""
    program = machine / "nvidia-smi"
    calls = machine / "calls"
    calls.touch()
    program.write_text(f"#!/bin/sh\necho >> '{calls}'\n{script}\n")
    program.chmod(0o755)


def calls(machine: Path) -> int:
    return len((machine / "calls").read_text().splitlines())


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


FAILING = {
    "exit status": "echo 'NVML: Driver/library version mismatch'; exit 18",
    "on stderr": "echo 'NVML: Driver/library version mismatch' >&2; exit 9",
    "no output": "exit 0",
    "no devices": "echo 'No devices were found'",
}


@pytest.mark.parametrize("script", FAILING.values(), ids=FAILING)
@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1"])
def test_a_driver_whose_gpus_cannot_be_listed_is_refused_after_some_tries(
    machine: Path, script: str, device: str
) -> None:
    (machine / "nvidiactl").touch()
    with_tool(machine, script)
    with pytest.raises(MachineError, match="STYLEQUEUE_DEVICE=cpu") as refused:
        devices.places(Settings(device=device))
    message = refused.value.message
    assert "nvidia-smi ended with status" in message
    assert "Driver/library version mismatch" in message or "Driver" not in script
    assert calls(machine) == devices.TRIES


@pytest.mark.parametrize("script", FAILING.values(), ids=FAILING)
def test_the_tool_without_a_driver_counts_as_no_gpu(machine: Path, script: str) -> None:
    with_tool(machine, script)
    (place,) = devices.places(Settings())
    assert place.is_cpu
    assert calls(machine) == 1


def test_a_driver_that_answers_at_a_later_try_is_used(machine: Path) -> None:
    (machine / "nvidiactl").touch()
    again = f"[ $(wc -l < '{machine}/calls') -lt 2 ] && exit 9"
    with_tool(machine, f"PATH=/usr/bin:/bin\n{again}\nprintf '%s' '{TWO}'")
    assert devices.visible_gpus() == ["GPU-aaaa", "GPU-bbbb"]


def test_a_tool_that_hangs_is_told_as_such(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine / "nvidiactl").touch()
    monkeypatch.setattr(devices, "LISTING_SECONDS", 0.2)
    monkeypatch.setattr(devices, "TRIES", 1)
    with_tool(machine, "exec /bin/sleep 30")
    with pytest.raises(MachineError, match=r"did not answer within 0\.2 s"):
        devices.places(Settings())


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_broken_driver_does_not_matter_where_it_is_not_to_be_used(
    machine: Path, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    (machine / "nvidiactl").touch()
    with_tool(machine, FAILING["exit status"])
    (place,) = devices.places(Settings(device="cpu"))
    assert place.is_cpu
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    (place,) = devices.places(Settings())
    assert place.is_cpu
    assert calls(machine) == 0


@pytest.mark.parametrize(
    ("count", "found"), [("2", ["0", "1"]), ("0", None), ("", None)]
)
def test_a_driver_without_its_tool_is_counted_with_torch(
    machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: str,
    found: list[str] | None,
) -> None:
    (machine / "nvidiactl").touch()
    monkeypatch.setattr(devices, "COUNT", f"print('{count}')")
    if found is None:
        with pytest.raises(MachineError, match="counting with torch"):
            devices.visible_gpus()
    else:
        assert devices.visible_gpus() == found


def test_a_gpu_of_another_maker_under_windows_is_no_gpu(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine / "dxg").touch()
    monkeypatch.setattr(devices, "COUNT", "print(0)")
    assert devices.visible_gpus() == []
    with_tool(machine, "exit 9")
    with pytest.raises(MachineError, match="nvidia-smi ended with status 9"):
        devices.visible_gpus()
