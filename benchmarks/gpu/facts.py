"""The machine: what it is called, and what it can do at most: the ceilings that kernels are compared with."""

from __future__ import annotations

import platform
import subprocess
from statistics import median
from typing import Any

import torch

from benchmarks import report
from benchmarks.gpu.clock import Clock, clock_for
from benchmarks.gpu.context import Context
from benchmarks.gpu.section import EVENTS, Section

COPY_BYTES = 1 << 30
CACHE_BYTES = 12 << 20
MATRIX = 4096
LAUNCHES = 200


def measure(context: Context) -> Section:
    """Facts, then ceilings."""
    section = context.begin("Machine")
    section.data["facts"] = facts(context)
    section.save()
    ceilings = measure_ceilings(context, clock_for(context.device), section)
    section.data["ceilings"] = ceilings
    rows = [
        ["device-to-device copy, read and written", f"{ceilings['copy'] / 1e12:.3g} TB/s"],
        ["the same within the second-level cache", f"{ceilings['cache'] / 1e12:.3g} TB/s"],
        ["float32 arithmetic, in a matrix product", f"{ceilings['arithmetic'] / 1e12:.3g} TFLOP/s"],
        ["an empty kernel in a CUDA graph", f"{ceilings['graph launch'] * 1e6:.3g} us"],
        ["an empty kernel launched from Python", f"{ceilings['launch'] * 1e6:.3g} us"],
    ]
    section.table("Ceilings, measured in this run (medians)", ["", "measured"], rows)
    return section


def facts(context: Context) -> dict[str, Any]:
    """Names and versions."""
    common = {"python": platform.python_version(), "torch": torch.__version__, "processor": report.processor_name()}
    if context.rehearsal:
        return {"device": "CPU (rehearsal)", "driver": "none", "cuda": "none", "memory_gib": 0.0, **common}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "driver": driver(),
        "cuda": torch.version.cuda,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cache_mib": getattr(properties, "L2_cache_size", 0) / 2**20,
        "memory_gib": properties.total_memory / 2**30,
        **common,
    }


def driver() -> str:
    """Its version, as nvidia-smi has it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip().split("\n")[0] or "unknown"


def measure_ceilings(context: Context, clock: Clock, section: Section) -> dict[str, float]:
    """copy, cache: bytes a second, read and written. arithmetic: FLOP a second. launch, graph launch: seconds a kernel."""
    shrink = 1024 if context.rehearsal else 1
    elements = COPY_BYTES // 4 // shrink
    source = torch.rand(elements, device=context.device)
    target = torch.empty_like(source)
    copies = section.timing(
        f"copy of {4 * elements >> 20} MiB", EVENTS, clock.milliseconds(lambda: target.copy_(source), 20)
    )
    small, other = source[: CACHE_BYTES // 4 // shrink], target[: CACHE_BYTES // 4 // shrink]
    within = _kernel_seconds(clock, lambda: torch.add(small, 1.0, out=other))
    size = MATRIX // (32 if context.rehearsal else 1)
    matrix = torch.rand(size, size, device=context.device)
    product = median(clock.milliseconds(lambda: matrix @ matrix, 10)) / 1e3
    one = torch.zeros(1, device=context.device)

    def launches() -> None:
        for _ in range(LAUNCHES):
            one.add_(1.0)

    return {
        "copy": 8 * elements / (copies.median / 1e3),
        "cache": 8 * small.numel() / within,
        "arithmetic": 2 * size**3 / product,
        "launch": median(clock.milliseconds(launches, 5)) / 1e3 / LAUNCHES,
        "graph launch": median(clock.milliseconds(clock.capture(launches).run, 10)) / 1e3 / LAUNCHES,
    }


def _kernel_seconds(clock: Clock, body: Any) -> float:
    """Of a body that is one kernel. The profiler knows it without the launch; on the CPU there is none of ours to see."""
    found = [duration for durations in clock.kernels(body, 50).values() for duration in durations]
    return median(found) / 1e6 if found else median(clock.milliseconds(body, 50)) / 1e3
