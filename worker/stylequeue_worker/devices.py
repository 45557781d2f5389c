"""Which devices this machine's workers run on, found without touching CUDA.

A process that has asked CUDA anything cannot fork children that use it.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from stylequeue_shared.errors import BadConfiguration, MachineError
from stylequeue_shared.settings import Settings

# Present where NVIDIA's driver is loaded, on Linux.
DRIVER = Path("/dev/nvidiactl")
# Present under Windows' Linux for GPUs of any maker; NVIDIA's driver adds nvidia-smi.
WINDOWS_GPU = Path("/dev/dxg")
UUID = re.compile(r"^(\s*).*\(UUID: ([^)]+)\)")
COUNT = "import torch; print(torch.cuda.device_count())"
# A driver that is being loaded, or a GPU that is being reset, answers soon after.
TRIES = 3
RETRY_SECONDS = 2.0
LISTING_SECONDS = 120

log = structlog.get_logger()


@dataclass(frozen=True)
class Place:
    """Where one worker runs: the environment that pins it there."""

    environment: Mapping[str, str]

    @property
    def is_cpu(self) -> bool:
        return self.environment["STYLEQUEUE_DEVICE"] == "cpu"

    @property
    def description(self) -> Mapping[str, str | None]:
        """What a log line says of it."""
        return {
            "device": self.environment["STYLEQUEUE_DEVICE"],
            "gpu": self.environment["CUDA_VISIBLE_DEVICES"] or None,
        }


def places(settings: Settings) -> list[Place]:
    """Return a place for each worker: one per GPU, or as many as set on the CPU.

    Raises BadConfiguration when a GPU is asked for that is not there, MachineError
    when there is a GPU driver and its GPUs cannot be listed.
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
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None and chosen.strip() in ("", "-1"):
        # Whoever hides all GPUs need not have a driver that works.
        return []
    present = _present_gpus()
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
    """List the machine's GPUs; a driver that is there must name at least one.

    Taking its failure for a machine without GPUs would run a GPU host on its CPU.
    """
    program = shutil.which("nvidia-smi")
    if not program and not DRIVER.exists() and not WINDOWS_GPU.exists():
        return []
    # The tool alone, as images ship it, says nothing about the machine.
    has_driver = DRIVER.exists() or bool(program and WINDOWS_GPU.exists())
    for left in reversed(range(TRIES if has_driver else 1)):
        found, failure = _list_gpus(program)
        if found or not has_driver:
            return found
        if left:
            log.warning("gpus_not_listed", failure=failure, tries_left=left)
            time.sleep(RETRY_SECONDS)
    raise MachineError(
        f"a GPU driver is present, but its GPUs cannot be listed: {failure}; repair "
        "it, or set STYLEQUEUE_DEVICE=cpu to run on the CPU"
    )


def _list_gpus(program: str | None) -> tuple[list[str], str]:
    """Return the GPUs, and why there are none."""
    if program:
        answer, failure = _output([program, "-L"])
        return parse_list(answer), f"nvidia-smi {failure}"
    # A container without NVIDIA's tools. The variable has torch count without
    # initialising CUDA, which would cost memory on every GPU.
    answer, failure = _output([sys.executable, "-P", "-c", COUNT])
    count = int(answer) if answer.isdigit() else 0
    return [str(number) for number in range(count)], f"counting with torch {failure}"


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


def _output(command: list[str]) -> tuple[str, str]:
    """Return what the command wrote, empty if it failed, and how it ended."""
    environment = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=LISTING_SECONDS,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return "", f"did not answer within {LISTING_SECONDS} s"
    except OSError as error:
        return "", f"cannot be run ({error.strerror})"
    said = (done.stdout + done.stderr).strip().splitlines()
    how = f"ended with status {done.returncode} ({said[-1] if said else 'no output'})"
    return done.stdout.strip("\n") if done.returncode == 0 else "", how


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
