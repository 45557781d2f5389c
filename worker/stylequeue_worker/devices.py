"""Which devices this machine's workers run on, found without touching CUDA.

A process that has asked CUDA anything cannot fork children that use it.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stylequeue_shared.errors import BadConfiguration
from stylequeue_shared.settings import Settings

# Present wherever NVIDIA's driver is: on Linux, and under Windows' Linux.
DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
UUID = re.compile(r"^(\s*).*\(UUID: ([^)]+)\)")
COUNT = "import torch; print(torch.cuda.device_count())"


@dataclass(frozen=True)
class Place:
    """Where one worker runs: the environment that pins it there."""

    environment: Mapping[str, str]

    @property
    def is_cpu(self) -> bool:
        return self.environment["STYLEQUEUE_DEVICE"] == "cpu"


def places(settings: Settings) -> list[Place]:
    """Return a place for each worker: one per GPU, or as many as set on the CPU.

    Raises BadConfiguration when a GPU is asked for that is not there.
    """
    gpus = [] if settings.device == "cpu" else visible_gpus()
    if settings.device.startswith("cuda"):
        _, _, number = settings.device.partition(":")
        if not gpus or int(number or 0) >= len(gpus):
            raise BadConfiguration(
                f"STYLEQUEUE_DEVICE: {settings.device}, but {len(gpus)} GPUs are "
                "visible here; set it to auto or cpu"
            )
        gpus = [gpus[int(number)]] if number else gpus
    if not gpus:
        return _on_the_cpu(settings)
    return [
        Place(
            {
                "CUDA_VISIBLE_DEVICES": gpu,
                "STYLEQUEUE_DEVICE": "cuda:0",
                # What cuBLAS needs to give the same bits each time.
                "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            }
        )
        for gpu in gpus
    ]


def visible_gpus() -> list[str]:
    """Return the GPUs that CUDA would show, as CUDA_VISIBLE_DEVICES names them."""
    present = _present_gpus()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not present or chosen is None:
        return present
    found = []
    for name in (part.strip() for part in chosen.split(",")):
        # CUDA, too, stops at the first name that means nothing.
        is_number = name.isdigit() and int(name) < len(present)
        if not is_number and not any(name and gpu.startswith(name) for gpu in present):
            break
        found.append(name)
    return found


def _present_gpus() -> list[str]:
    if program := shutil.which("nvidia-smi"):
        answer = _output([program, "-L"])
        return parse_list(answer)
    if any(driver.exists() for driver in DRIVERS):
        # A container without NVIDIA's tools. The variable has torch count without
        # initialising CUDA, which would cost memory on every GPU.
        answer = _output([sys.executable, "-P", "-c", COUNT])
        return [str(number) for number in range(int(answer or 0))]
    return []


def parse_list(text: str) -> list[str]:
    """Read `nvidia-smi -L`: the UUID of each GPU, or of each of its MIG slices."""
    found: list[str] = []
    for line in text.splitlines():
        if match := UUID.match(line):
            indent, uuid = match.groups()
            # Slices follow the GPU they are of, which itself cannot be used then.
            if indent and found and found[-1].startswith("GPU-"):
                found.pop()
            found.append(uuid)
    return found


def _output(command: list[str]) -> str:
    environment = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip("\n") if done.returncode == 0 else ""


def _on_the_cpu(settings: Settings) -> list[Place]:
    workers = settings.workers or 1
    environment = {"CUDA_VISIBLE_DEVICES": "", "STYLEQUEUE_DEVICE": "cpu"}
    if settings.threads is None and workers > 1:
        # Each would take all cores, and all would be slower for it.
        environment["STYLEQUEUE_THREADS"] = str(max(1, _cores() // workers))
    return [Place(environment)] * workers


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
