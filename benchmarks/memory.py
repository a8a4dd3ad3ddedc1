"""Peak memory of one run, each in a fresh process.

Imports and inputs come first; what the peak rises above them is the engine's. Linux: VmHWM, set back before the run,
because the ru_maxrss of a process that was started by another begins at the other's. Elsewhere: ru_maxrss.
"""

from __future__ import annotations

import importlib
import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cases import ROOT, Case, load_image, network_unary
from benchmarks.engines import Inputs

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class MemoryUse:
    """Bytes. peak: of the whole process. rise: above imports and inputs."""

    peak: int
    rise: int
    seconds: float


def measure(
    engine: str,
    threads: int,
    case: Case,
    image: str,
    *,
    timeout: float = 3600.0,
    engines: str = "benchmarks.engines",
) -> MemoryUse:
    """Run ``case`` once in a fresh interpreter and return what it took. Raises RuntimeError if that fails.

    engines: the module whose ``find_engine`` knows the engine.
    """
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder) / "request.json"
        asked = {"engines": engines, "engine": engine, "threads": threads, "case": case.to_json(), "image": image}
        request.write_text(json.dumps(asked))
        # At the end of the path: an installed deeplab_crf comes before the sources, which may have no compiled module.
        start = f"import sys, runpy; sys.path.append({str(ROOT)!r}); runpy.run_module('benchmarks.memory', run_name='__main__')"
        done = subprocess.run(
            [sys.executable, "-c", start, str(request)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=folder,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(f"measuring the memory of {engine} failed:\n{done.stderr}")
    return MemoryUse(**json.loads(done.stdout))


def _status_bytes(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{STATUS} has no {field}")


def _peak_bytes() -> int:
    if STATUS.exists():
        return _status_bytes("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _start_of_run() -> int:
    """Sets the peak back where the system allows it; returns what the process holds now."""
    if not STATUS.exists():
        return _peak_bytes()
    Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def _run_request(request: dict[str, Any]) -> MemoryUse:
    case = Case.from_json(request["case"])
    engine = importlib.import_module(request["engines"]).find_engine(request["engine"], request["threads"])
    if engine is None:
        raise RuntimeError(f"{request['engine']} is not installed")
    inputs = Inputs(load_image(request["image"], case.width, case.height), network_unary(case))
    before = _start_of_run()
    seconds = engine.run(case, inputs).total
    peak = _peak_bytes()
    return MemoryUse(peak=peak, rise=peak - before, seconds=seconds)


if __name__ == "__main__":
    print(json.dumps(vars(_run_request(json.loads(Path(sys.argv[1]).read_text())))))
