"""compute-sanitizer over the small tests of the device: memory that is not ours, and races in shared memory."""

from __future__ import annotations

import re
import shutil

from benchmarks.cases import ROOT
from benchmarks.gpu.commands import Outcome, run_command
from benchmarks.gpu.context import Context
from benchmarks.gpu.cuda_tests import CONFIGURATION, PYTEST
from benchmarks.gpu.section import SHOWN_LINES, Section

TOOLS = ("memcheck", "racecheck")
SANITIZER = "compute-sanitizer"
USUAL_PLACE = "/usr/local/cuda/bin/compute-sanitizer"
# Our kernels alone: torch's are many, and not ours to check. Errors of the API are expected where a test asks for them.
OPTIONS = ("--kernel-name", "kns=deeplab_crf", "--report-api-errors", "no", "--error-exitcode", "9")
# The small ones of the kernels; a graph cannot be captured while every tensor is an allocation of its own.
SELECTION = ("-m", "cuda", "-k", "not graph and not large and not memory and not process")
PLACES = ("tests/cuda", "tests/ops")
# Otherwise memcheck would see torch's pool and no ends of tensors.
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
SUMMARY = re.compile(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")


def measure(context: Context) -> Section:
    """Each tool in its share of the time."""
    section = context.begin("Sanitizers")
    if context.rehearsal:
        return section.not_run("a rehearsal has no device")
    tool_path = shutil.which(SANITIZER) or shutil.which(USUAL_PLACE)
    if tool_path is None:
        return section.not_run(f"{SANITIZER} was not found")
    section.note("racecheck sees hazards in shared memory only. Both see the kernels of this package alone.")
    for number, tool in enumerate(TOOLS):
        seconds = context.seconds_left() / (len(TOOLS) - number)
        run_tool(section, tool_path, tool, seconds, context.folder)
    return section


def run_tool(section: Section, tool_path: str, tool: str, seconds: float, folder: str) -> None:
    """One tool over the small tests, as a check."""
    places = [str(ROOT / place) for place in PLACES]
    command = (tool_path, "--tool", tool, *OPTIONS, *PYTEST, *CONFIGURATION, *SELECTION, *places)
    outcome = run_command(command, folder, seconds, ENVIRONMENT)
    found = findings(outcome)
    if outcome.code is None:
        text = f"stopped after {seconds:.0f} s, before the tests were through"
    elif found is None:
        text = f"exit status {outcome.code}, no summary"
    else:
        text = f"{found} findings, exit status {outcome.code}"
    good = outcome.code == 0 and found == 0
    section.check(tool, text, "0 findings, exit status 0", good)
    section.data[tool] = {"findings": found, "code": outcome.code, "lines": outcome.lines}
    if not good:
        section.output += [f"{tool}:", *outcome.lines[-SHOWN_LINES:]]


def findings(outcome: Outcome) -> int | None:
    """Errors or hazards as the tool's last summary counts them; None without a summary."""
    for line in reversed(outcome.lines):
        found = SUMMARY.search(line)
        if found:
            return int(found.group(1) or found.group(2))
    return None
