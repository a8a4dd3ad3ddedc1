"""Commands with a time limit, whose output is shown while they run and whose last lines are kept."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

KEPT_LINES = 400
GRACE = 5.0  # seconds between the request to end and the end


@dataclass(frozen=True)
class Outcome:
    """code: exit status, or None if the time ran out. lines: the last of standard output and standard error together."""

    code: int | None
    lines: list[str]

    def why(self, seconds: float) -> str:
        """What went wrong, for `Section.fail`."""
        return f"stopped after {seconds:.0f} s" if self.code is None else f"exit status {self.code}"


def run_command(
    command: Sequence[str], folder: str | Path, seconds: float, environment: Mapping[str, str] | None = None
) -> Outcome:
    """Run in ``folder`` with additions to the environment. It and what it started end when the time is up, or when this process
    is interrupted."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    lines: deque[str] = deque(maxlen=KEPT_LINES)
    assert process.stdout is not None
    reader = threading.Thread(target=_show, args=(process.stdout, lines), daemon=True)
    reader.start()
    code = None
    try:
        code = process.wait(timeout=max(0.1, seconds))
    except subprocess.TimeoutExpired:
        pass
    finally:
        _stop(process)
    reader.join(timeout=GRACE)
    return Outcome(code, list(lines))


def _show(stream: IO[str], lines: deque[str]) -> None:
    with stream:
        for line in stream:
            lines.append(line.rstrip("\n"))
            print("    " + lines[-1], file=sys.stderr, flush=True)


def _stop(process: subprocess.Popen[str]) -> None:
    """A request first: a Python step then ends commands of its own, which have process groups of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE)
