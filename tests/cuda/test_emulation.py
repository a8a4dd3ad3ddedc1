"""The emulation of CUDA on the CPU: barriers, shuffles, atomics, and that it finds threads that wait for one another for ever."""

from __future__ import annotations

import subprocess
from pathlib import Path


def test_the_emulation_itself(emulated_folder: Path) -> None:
    done = subprocess.run([emulated_folder / "emulation_test"], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(lines) == 26
    assert all(line.endswith(": ok") for line in lines)
