"""What a benchmark ran on, and the form in which every benchmark reports."""

import importlib.util
import json
import os
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """Return processor, cores, memory, GPU and versions; torch only if installed."""
    machine: dict[str, Any] = {
        "processor": _processor(),
        "cores": _cores(),
        "memory_gb": round(_memory_bytes() / 1e9, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        # Others at work on the machine make every figure worse.
        "load_before": round(os.getloadavg()[0], 2),
    }
    if importlib.util.find_spec("torch"):
        import torch

        machine["torch"] = torch.__version__
        machine["threads"] = torch.get_num_threads()
        machine["instructions"] = torch.backends.cpu.get_cpu_capability()
        if torch.cuda.is_available():
            machine["gpu"] = torch.cuda.get_device_name()
    return machine


def peak_mb() -> int:
    """Return the most memory that this process ever had, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In bytes on macOS, else in kibibytes.
    return round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6)


def report(
    name: str, rows: Sequence[Mapping[str, Any]], machine: Mapping[str, Any]
) -> None:
    """Print the rows as a table, and all of it as JSON on the last line.

    `machine` is what `describe` returned before the measurements began.
    """
    print(table(rows))
    print(json.dumps({"bench": name, "machine": dict(machine), "rows": list(rows)}))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table, numbers to four digits, aligned right."""
    if not rows:
        return ""
    columns = list(rows[0])
    cells = [columns, *([_cell(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    is_number = [isinstance(rows[0][name], int | float) for name in columns]
    lines = [
        "| "
        + " | ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, is_number, strict=True)
        )
        + " |"
        for line in cells
    ]
    rule = "|".join(
        "-" * (width + 1) + (":" if right else "-")
        for width, right in zip(widths, is_number, strict=True)
    )
    lines.insert(1, f"|{rule}|")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return "" if value is None else str(value)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
