"""The process of one step: a CUDA error that cannot be cleared, or a kernel that hangs, ends this step and no other."""

from __future__ import annotations

import importlib
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cases import ROOT
from benchmarks.gpu.commands import run_command
from benchmarks.gpu.context import Context
from benchmarks.gpu.section import Section

# The sources come last: their deeplab_crf has no compiled module, and what is measured is the installed one.
_START = (
    f"import sys; sys.path.append({str(ROOT)!r}); from benchmarks.gpu.child import main; sys.exit(main(sys.argv[1:]))"
)


def run_in_child(module: str, title: str, context: Context) -> Section:
    """``measure(context)`` of ``module`` in a fresh process, until the deadline."""
    given = Path(context.folder) / "context.json"
    given.write_text(json.dumps(asdict(context)))
    seconds = context.seconds_left()
    outcome = run_command([sys.executable, "-c", _START, module, str(given)], context.folder, seconds)
    section = context.begin(title)
    if context.section_file.exists():
        section = Section.from_json(json.loads(context.section_file.read_text()))
    if outcome.code != 0:
        section.fail(outcome.why(seconds), outcome.lines)
    return section


def main(arguments: Sequence[str]) -> int:
    """In the fresh process."""

    def leave(*_: Any) -> None:
        sys.exit(1)

    signal.signal(signal.SIGTERM, leave)
    module, given = arguments
    context = Context(**json.loads(Path(given).read_text()))
    section = importlib.import_module(module).measure(context)
    section.save()
    return 0
