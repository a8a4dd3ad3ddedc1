"""The steps of the report in their order, and how they are run: each for itself, whatever became of those before."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.crf import progress
from benchmarks.gpu.child import run_in_child
from benchmarks.gpu.context import Context
from benchmarks.gpu.section import Section


@dataclass(frozen=True)
class Step:
    """module: has ``measure(context) -> Section``. seconds: that it may take; what a step leaves over goes to the next ones."""

    module: str
    title: str
    seconds: float

    @property
    def name(self) -> str:
        """In report.json and for later steps."""
        return self.module.rpartition(".")[2]


# In all less than ten minutes, with some seconds for writing the report. Another benchmark joins as one more line. The convolutions
# come last: they take what is left over.
STEPS = (
    Step("benchmarks.gpu.facts", "Machine", 35),
    Step("benchmarks.gpu.build", "Build", 120),
    Step("benchmarks.gpu.cuda_tests", "Tests", 80),
    Step("benchmarks.gpu.sanitizers", "Sanitizers", 80),
    Step("benchmarks.gpu.agreement", "Agreement", 40),
    Step("benchmarks.gpu.speed", "Speed", 35),
    Step("benchmarks.gpu.training", "Training", 25),
    Step("benchmarks.gpu.kernels", "Kernels", 25),
    Step("benchmarks.gpu.peers", "Peers", 25),
    Step("benchmarks.gpu.conv", "Convolutions", 110),
)

Run = Callable[[str, str, Context], Section]


def run_steps(steps: Sequence[Step], context: Context, scratch: Path, run: Run = run_in_child) -> dict[str, Section]:
    """Sections by the steps' names. scratch: an empty folder."""
    sections: dict[str, Section] = {}
    deadline = time.time()
    for number, step in enumerate(steps, 1):
        folder = scratch / step.name
        folder.mkdir()
        deadline += step.seconds
        began = time.time()
        progress(f"[{number}/{len(steps)}] {step.title}: at most {deadline - began:.0f} s")
        earlier = {name: section.data for name, section in sections.items()}
        here = replace(context, folder=str(folder), deadline=deadline, earlier=earlier)
        section = run(step.module, step.title, here)
        section.seconds = time.time() - began
        sections[step.name] = section
        progress(f"    {summary(section)}")
    return sections


def summary(section: Section) -> str:
    """One line."""
    reason = f", {section.reason}" if section.reason else ""
    good = sum(check.good for check in section.checks)
    checks = f", {good} of {len(section.checks)} checks passed" if section.checks else ""
    return f"{section.title}: {section.status}{reason}{checks} ({section.seconds:.0f} s)"
