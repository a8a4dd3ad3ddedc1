"""``pytest -m cuda`` against the installed package, counted by its own report."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.cases import ROOT
from benchmarks.gpu.commands import run_command
from benchmarks.gpu.context import Context
from benchmarks.gpu.section import Section

# Started in an empty folder: in the repository's root the sources would come before the installed package.
PYTEST = (sys.executable, "-c", "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))")
CONFIGURATION = ("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "no:cacheprovider", "-q")
# A rehearsal has no device for the tests of one; it runs others, which take no time.
SELECTION = ("-m", "cuda", str(ROOT / "tests"))
REHEARSED = (str(ROOT / "tests" / "core" / "test_presets.py"),)
LISTED = 20


@dataclass(frozen=True)
class Counts:
    """Of one run. bad: names of those that failed or broke."""

    tests: int
    skipped: int
    bad: list[str]

    def __str__(self) -> str:
        passed = self.tests - self.skipped - len(self.bad)
        return f"{passed} passed, {len(self.bad)} failed, {self.skipped} skipped"


def measure(context: Context) -> Section:
    """Run and count."""
    section = context.begin("Tests")
    junit = Path(context.folder) / "junit.xml"
    selection = REHEARSED if context.rehearsal else SELECTION
    seconds = context.seconds_left()
    command = (*PYTEST, *CONFIGURATION, *selection, f"--junitxml={junit}")
    outcome = run_command(command, context.folder, seconds)
    counts = read_counts(junit)
    if counts is not None:
        section.data["counts"] = {"tests": counts.tests, "skipped": counts.skipped, "bad": counts.bad}
        good = outcome.code == 0 and counts.tests > counts.skipped
        section.check(
            "tests without a device" if context.rehearsal else "pytest -m cuda",
            str(counts),
            "some passed, none failed",
            good,
        )
        section.notes += [f"Failed: {name}" for name in counts.bad[:LISTED]]
    if outcome.code != 0:
        return section.fail(outcome.why(seconds), outcome.lines)
    return section


def read_counts(junit: Path) -> Counts | None:
    """From a JUnit report; None if there is none."""
    if not junit.exists():
        return None
    cases = list(ElementTree.parse(junit).iter("testcase"))
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return Counts(len(cases), skipped, [f"{case.get('classname')}::{case.get('name')}" for case in bad])
