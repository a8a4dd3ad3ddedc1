"""tools/check_spills reads what ptxas says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "check_spills"

REPORT = """ptxas info    : Compiling entry function '{name}' for 'sm_90'
ptxas info    : Function properties for {name}
    96 bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 64 bytes smem
"""

pytestmark = pytest.mark.skipif(not TOOL.exists(), reason="needs the sources")


def _run(folder: Path, report: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """With a compiler that only reports."""
    nvcc = folder / "nvcc"
    nvcc.write_text(f"#!/bin/sh\ncat >&2 <<'REPORT'\n{report}REPORT\nexit {status}\n")
    nvcc.chmod(0o755)
    command = [sys.executable, str(TOOL), "some.cu"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": f"{folder}:/usr/bin:/bin"})


@pytest.mark.parametrize(("stores", "loads", "status"), [(0, 0, 0), (8, 0, 1), (0, 16, 1)])
def test_spills_fail(tmp_path: Path, stores: int, loads: int, status: int) -> None:
    report = REPORT.format(name="_Z5firstv", stores=0, loads=0) + REPORT.format(
        name="_Z6secondv", stores=stores, loads=loads
    )
    done = _run(tmp_path, report)
    assert done.returncode == status, done.stderr
    assert ("second" in done.stdout) == (status == 1)
    assert f"2 kernels in 1 sources for sm_90, {status} of them spill" in done.stdout


def test_what_does_not_compile_fails(tmp_path: Path) -> None:
    done = _run(tmp_path, "some.cu(3): error: no\n", 2)
    assert done.returncode != 0
    assert "some.cu(3): error: no" in done.stderr
