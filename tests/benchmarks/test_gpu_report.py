"""The GPU's report where there is no GPU: the command, its steps and their limits, the document. What a step does: see
test_gpu_steps.py and test_gpu_kernels.py."""

from __future__ import annotations

import importlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cases, gpu_report
from benchmarks.gpu import child, document, plot, steps
from benchmarks.gpu.context import Context
from benchmarks.gpu.section import DONE, EVENTS, FAILED, NOT_RUN, REPLAY, Section

ROOT = Path(__file__).resolve().parents[2]


def context(folder: Path, seconds: float = 60.0) -> Context:
    """Of a rehearsal."""
    return Context("cpu", cases.SYNTHETIC, False, str(folder), time.time() + seconds)


def in_this_process(module: str, title: str, given: Context) -> Section:
    """Instead of a process a step, each of which would import torch."""
    return importlib.import_module(module).measure(given)


# ------------------------------------------------------------------------------------------------------------------ the command
def test_without_a_gpu_it_says_so_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_report.main(["--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("no GPU to report on: torch ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("version", "available", "expected"),
    [(None, False, "was built without CUDA"), ("13.0", False, "nvidia-smi"), ("13.0", True, None)],
)
def test_why_there_is_no_gpu(
    version: str | None, available: bool, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    reason = gpu_report.why_no_gpu()
    assert reason is None if expected is None else expected in str(reason)


def test_the_whole_rehearsal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    monkeypatch.setattr(
        gpu_report, "run_steps", lambda chosen, given, scratch: steps.run_steps(chosen, given, scratch, in_this_process)
    )
    returned = tmp_path / "returned"
    returned.mkdir()
    monkeypatch.setenv("OUT", str(returned))
    out = tmp_path / "out"
    assert gpu_report.main(["--rehearse", "--image", cases.SYNTHETIC, "--out", str(out)]) == 0
    names = {"REPORT.md", "report.json", "report.png"}
    assert {path.name for path in out.iterdir()} == {path.name for path in returned.iterdir()} == names
    text = (out / "REPORT.md").read_text()
    assert text.split("\n\n")[1].startswith("**CPU rehearsal, not a GPU figure")
    assert "Everything that has to be right is." in text
    assert "Not run: Sanitizers" in text
    assert "| yes |" not in text.split("## What was wanted")[1].split("##")[0]
    data = json.loads((out / "report.json").read_text())
    assert data["rehearsal"] == document.REHEARSAL
    assert list(data["sections"]) == [step.name for step in steps.STEPS]
    goals = [goal for section in data["sections"].values() for goal in section["goals"]]
    of_convolutions = [1.0, 0.5, 0.667, 1.0, 0.5, 1.0, 0.5]
    assert [goal["target"] for goal in goals] == [1.0, 2.0, 0.3, 1.0, 3.5, 3.5, 3.5, *of_convolutions]
    assert len(data["sections"]["agreement"]["checks"]) == 13
    timings = [timing for section in data["sections"].values() for timing in section["timings"]]
    assert all(min(timing["milliseconds"]) > 0 for timing in timings)
    assert "build + inference" in capsys.readouterr().out
    assert (out / "report.png").stat().st_size > 10_000


def test_a_rehearsal_stays_out_of_the_docs() -> None:
    assert gpu_report.parse_arguments(["--rehearse"]).out == ROOT / "build" / "gpu_rehearsal"
    assert gpu_report.parse_arguments([]).out == ROOT / "docs" / "gpu"


def test_a_failed_check_is_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = [False, True]

    def run(chosen: Any, given: Context, scratch: Path) -> dict[str, Section]:
        assert given.device == "cuda"
        assert given.build
        bad, missed = Section("Agreement"), Section("Speed")
        missed.timing("one image", REPLAY, [3.0], target=1.0)
        bad.check("two runs", "3 entries differ", "the same bits", verdicts.pop())
        return {"agreement": bad, "speed": missed}

    monkeypatch.setattr(gpu_report, "why_no_gpu", lambda: None)
    monkeypatch.setattr(gpu_report, "run_steps", run)
    monkeypatch.setattr(gpu_report.report, "commit", lambda: "unknown")
    monkeypatch.delenv("OUT", raising=False)
    arguments = ["--out", str(tmp_path), "--commit", "abc123"]
    assert [gpu_report.main(arguments) for _ in range(2)] == [0, 1]
    text = (tmp_path / "REPORT.md").read_text()
    assert "FAILED: Agreement: two runs" in text
    assert "| one image | 3.000 ms | 1 ms | NO |" in text
    assert "- commit: abc123 (as told on the command line)" in text
    assert "rehearsal" not in text


def test_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_report.main(["--image", "no.jpg"])
    assert "no such file: no.jpg" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------------- the steps
def test_the_steps_fit_into_ten_minutes() -> None:
    assert sum(step.seconds for step in steps.STEPS) < 10 * 60 - 10
    assert [step.name for step in steps.STEPS][:3] == ["facts", "build", "cuda_tests"]
    for step in steps.STEPS:
        assert callable(importlib.import_module(step.module).measure)


def test_steps_pass_on_what_they_found_and_the_time_they_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Context] = []

    def run(module: str, title: str, given: Context) -> Section:
        seen.append(given)
        section = Section(title, data={"of": module})
        return section.fail("exit status 1", ["a traceback"]) if module == "x.second" else section

    chosen = [steps.Step(f"x.{name}", name.title(), 100) for name in ("first", "second", "third")]
    began = time.time()
    sections = steps.run_steps(chosen, context(tmp_path), tmp_path, run)
    assert [section.status for section in sections.values()] == [DONE, FAILED, DONE]
    assert [list(given.earlier) for given in seen] == [[], ["first"], ["first", "second"]]
    assert seen[2].earlier["first"] == {"of": "x.first"}
    assert [round(given.deadline - began) for given in seen] == [100, 200, 300]
    assert len({given.folder for given in seen}) == 3
    assert "[2/3] Second: at most 200 s" in capsys.readouterr().err


STEP = """
import os, subprocess, sys, time

def measure(context):
    section = context.begin("Step")
    section.check("before", "1", "1", True)
    print("a line of progress", file=sys.stderr)
    {body}
    section.note("after")
    return section
"""


@pytest.mark.parametrize(
    ("body", "status", "reason", "notes", "line"),
    [
        ("pass", DONE, "", ["after"], None),
        ("raise ValueError('broken')", FAILED, "exit status 1", [], "ValueError: broken"),
        ("os._exit(7)", FAILED, "exit status 7", [], "a line of progress"),
    ],
)
def test_a_step_has_a_process_of_its_own(
    body: str, status: str, reason: str, notes: list[str], line: str | None, tmp_path: Path, monkeypatch: Any
) -> None:
    """And leaves what it had found before it died."""
    (tmp_path / "some_step.py").write_text(STEP.format(body=body))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    section = child.run_in_child("some_step", "Step", context(tmp_path))
    assert (section.status, section.reason, section.notes) == (status, reason, notes)
    assert [check.name for check in section.checks] == ["before"]
    if line is not None:
        assert section.output[-1] == line
        assert section.data["output"][-1] == line


def test_a_step_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = (
        "from benchmarks.gpu.commands import run_command; "
        "run_command([sys.executable, '-c', 'import os, time; print(os.getpid()); time.sleep(60)'], context.folder, 60)"
    )
    (tmp_path / "some_step.py").write_text(STEP.format(body=body))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    began = time.time()
    section = child.run_in_child("some_step", "Step", context(tmp_path, seconds=7.0))
    assert time.time() - began < 30
    assert section.status == FAILED
    assert section.reason == "stopped after 5 s"
    assert section.checks
    grandchild = Path("/proc", next(line.strip() for line in section.output if line.strip().isdigit()))
    assert not grandchild.exists() or "zombie" in (grandchild / "status").read_text()


def test_a_step_finds_the_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sources, which have no compiled module, are the last place where it looks."""
    body = "section.data.update(here=os.getcwd(), path=sys.path)"
    (tmp_path / "some_step.py").write_text(STEP.format(body=body))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(ROOT)
    section = child.run_in_child("some_step", "Step", context(tmp_path))
    assert section.data["here"] == str(tmp_path)
    assert section.data["path"][:2] == ["", str(tmp_path)]
    assert section.data["path"][-1] == str(ROOT)


# ----------------------------------------------------------------------------------------------------------------- the document
def sections() -> dict[str, Section]:
    """Of a run in which something went wrong."""
    machine = Section("Machine", data={"ceilings": {"copy": 3e12}})
    speed = Section("Speed", seconds=12.0)
    speed.timing("one image", EVENTS, [1.2, 1.0, 1.4])
    speed.timing("one image", REPLAY, [0.5, 0.9, 0.7], target=1.0)
    speed.timing("a batch", REPLAY, [8.0, 8.0, 16.0], images=16, target=0.3)
    speed.goal("backward", 4.0, 3.5, "x")
    speed.note("A note.")
    kernels = Section("Kernels")
    kernels.data["kernels"] = {
        "500x375x21, 10 it, 80/13: filter": [
            {"name": "blur_axis", "bandwidth": 1.5e12},
            {"name": "memset", "bandwidth": None},
        ],
        "500x375x21, 10 it, 67/3: filter": [{"name": "blur_axis", "bandwidth": 2.5e12}],
    }
    tests = Section("Tests").fail("exit status 1", [f"line {number}" for number in range(100)])
    sanitizers = Section("Sanitizers").not_run("compute-sanitizer was not found")
    found = (machine, speed, kernels, tests, sanitizers)
    return dict(zip(("facts", "speed", "kernels", "cuda_tests", "sanitizers"), found, strict=True))


def test_sections_survive_the_way_to_the_report(tmp_path: Path) -> None:
    for name, section in sections().items():
        section.file = str(tmp_path / name)
        section.check("a check", "1", "2", False)
        assert Section.from_json(json.loads((tmp_path / name).read_text())) == section
        assert section.bad[-1] == f"{section.title}: a check"


def test_the_document_says_what_was_found() -> None:
    text = document.as_markdown(sections(), {"GPU": "some"}, False, "report.png")
    assert "- FAILED: Tests: exit status 1" in text
    assert "- Not run: Sanitizers: compute-sanitizer was not found." in text
    assert "| one image | 0.700 ms | 1 ms | yes |" in text
    assert "| a batch | 0.500 ms | 0.3 ms | NO |" in text
    assert "| backward | 4.000 x | 3.5 x | NO |" in text
    assert "| one image | 1.200 (1.000 to 1.400) | 0.700 (0.500 to 0.900) |" in text
    assert "| a batch | - | 0.500 (0.500 to 1.000) |" in text
    assert "line 99" in text
    assert "line 59" not in text
    assert "report.png" in text
    assert "rehearsal" not in text


def test_everything_raw_is_in_the_json() -> None:
    data = document.as_json(sections(), {"GPU": "some"}, False)
    assert json.loads(json.dumps(data)) == data
    assert data["rehearsal"] is None
    assert data["sections"]["speed"]["timings"][0]["milliseconds"] == [1.2, 1.0, 1.4]
    assert len(data["sections"]["cuda_tests"]["data"]["output"]) == 100
    assert data["sections"]["kernels"] == asdict(sections()["kernels"])


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    assert plot.bandwidths(sections()) == {"blur_axis": {"80/13": 1.5e12, "67/3": 2.5e12}}
    assert plot.copy_bandwidth(sections()) == 3e12
    assert plot.plot(sections(), tmp_path / "both.png", False)
    assert plot.plot({"kernels": sections()["kernels"]}, tmp_path / "one.png", True)
    assert not plot.plot({"cuda_tests": sections()["cuda_tests"]}, tmp_path / "none.png", False)
    assert {path.name for path in tmp_path.iterdir()} == {"both.png", "one.png"}


def test_what_was_not_run_is_not_bad() -> None:
    assert sections()["sanitizers"].status == NOT_RUN
    assert sections()["sanitizers"].bad == []
