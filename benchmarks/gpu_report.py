"""The CUDA engine on this machine's GPU: built, tested, checked, timed, in one run of less than ten minutes.

    python -m benchmarks.gpu_report [--out FOLDER] [--no-build]

Needs no network. Writes REPORT.md, report.json and report.png. Exit status: 1 if something that has to be right is not, 2 without a
GPU. A goal that is missed is reported and is no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

from benchmarks import report
from benchmarks.cases import ROOT, SYNTHETIC, default_image
from benchmarks.crf import progress
from benchmarks.gpu.context import Context
from benchmarks.gpu.section import Section
from benchmarks.gpu.steps import STEPS, run_steps

NO_GPU = 2
DEFAULT_OUT = ROOT / "docs" / "gpu"
REHEARSAL_OUT = ROOT / "build" / "gpu_rehearsal"
DOCUMENT, DATA, PLOT = "REPORT.md", "report.json", "report.png"


def why_no_gpu() -> str | None:
    """None where torch sees a GPU."""
    if find_spec("torch") is None:
        return "torch is not installed"
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device; look with nvidia-smi whether there is one and its driver is loaded"
    return None


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_report", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the report (docs/gpu; build/gpu_rehearsal)")
    parser.add_argument("--no-build", action="store_true", help="measure what is installed instead of these sources")
    parser.add_argument("--image", default=default_image(), help=f"image, or '{SYNTHETIC}' (%(default)s)")
    parser.add_argument("--commit", help="to name where these sources are no git clone")
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="every step on the CPU with tiny inputs, without a build: measures nothing",
    )
    options = parser.parse_args(arguments)
    if options.image != SYNTHETIC and not Path(options.image).is_file():
        parser.error(f"argument --image: no such file: {options.image}")
    if options.image != SYNTHETIC:
        options.image = str(Path(options.image).resolve())
    if options.out is None:
        options.out = REHEARSAL_OUT if options.rehearse else DEFAULT_OUT
    return options


def head(sections: Mapping[str, Section], options: argparse.Namespace) -> dict[str, str]:
    """What the numbers depend on."""
    facts = sections["facts"].data.get("facts", {}) if "facts" in sections else {}
    commit = report.commit()
    if commit == "unknown" and options.commit:
        commit = f"{options.commit} (as told on the command line)"
    started = " ".join(["python -m benchmarks.gpu_report", *options.arguments])
    memory = f", {facts['memory_gib']:.0f} GiB" if facts.get("memory_gib") else ""
    return {
        "GPU": f"{facts.get('device', 'unknown')}{memory}",
        "driver": f"{facts.get('driver', 'unknown')}, CUDA {facts.get('cuda', 'unknown')}",
        "software": f"torch {facts.get('torch', 'unknown')}, Python {facts.get('python', 'unknown')}",
        "processor": str(facts.get("processor", "unknown")),
        "commit": commit,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "image": options.image if options.image == SYNTHETIC else Path(options.image).name,
        "command": f"`{started}`",
    }


def write(sections: Mapping[str, Section], options: argparse.Namespace) -> None:
    """The three files, and copies in the folder that $OUT names, where there is one."""
    from benchmarks.gpu import document
    from benchmarks.gpu.plot import plot

    options.out.mkdir(parents=True, exist_ok=True)
    lines = head(sections, options)
    data = document.as_json(sections, lines, options.rehearse)
    (options.out / DATA).write_text(json.dumps(data, indent=1) + "\n")
    drawn = find_spec("matplotlib") is not None and plot(sections, options.out / PLOT, options.rehearse)
    text = document.as_markdown(sections, lines, options.rehearse, PLOT if drawn else None)
    (options.out / DOCUMENT).write_text(text)
    names = [DOCUMENT, DATA, *([PLOT] if drawn else [])]
    folder = os.environ.get("OUT")
    if folder and Path(folder).is_dir():
        for name in names:
            shutil.copy(options.out / name, folder)
    progress(f"{', '.join(names)} in {options.out}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps, write the report, print its summary."""
    options = parse_arguments(arguments)
    options.arguments = list(sys.argv[1:] if arguments is None else arguments)
    reason = None if options.rehearse else why_no_gpu()
    if reason is not None:
        progress(f"no GPU to report on: {reason}. --rehearse tries the steps on the CPU")
        return NO_GPU
    context = Context(
        device="cpu" if options.rehearse else "cuda",
        image=options.image,
        build=not (options.no_build or options.rehearse),
        folder="",
        deadline=0.0,
    )
    with tempfile.TemporaryDirectory() as scratch:
        sections = run_steps(STEPS, context, Path(scratch))
    write(sections, options)
    from benchmarks.gpu.document import goal_table, verdict

    print(verdict(sections))
    print(goal_table([goal for section in sections.values() for goal in section.goals], options.rehearse))
    return 1 if any(section.bad for section in sections.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
