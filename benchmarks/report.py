"""Tables, files and the plot of a benchmark run, and where it ran."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.cases import HUGE_CASE, LARGE_CASES, ROOT, SYNTHETIC
from benchmarks.engines import OURS, PEER, SIMPLE, installed_version
from benchmarks.memory import MemoryUse
from benchmarks.results import PHASES, Result, geometric_mean

MISSING = "-"


def environment(image: str, threads: Sequence[int]) -> dict[str, Any]:
    """Processor, versions, commit and image: what the numbers depend on."""
    import numpy

    from deeplab_crf import native_info

    names = ("deeplab-crf", PEER, SIMPLE, "pillow")
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "processor": processor_name(),
        "threads": list(threads),
        "instruction set": native_info()["cpu"]["active"],
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "versions": {name: installed_version(name) for name in names},
        "commit": commit(),
        "image": image if image == SYNTHETIC else Path(image).name,
        "command": "python -m benchmarks.crf " + " ".join(sys.argv[1:]),
    }


def processor_name() -> str:
    """As the system calls it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """Of this repository, marked where files differ from it."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


def milliseconds(seconds: float | None) -> str:
    """Three digits, or a dash."""
    return MISSING if seconds is None else f"{seconds * 1e3:.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.1f}"


def times(value: float | None) -> str:
    """A ratio, or a dash."""
    return MISSING if value is None else f"{value:.1f}x"


def megabytes(use: MemoryUse | None) -> str:
    """How far memory rose, or a dash."""
    return MISSING if use is None else f"{use.rise / 1e6:.0f}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, numbers to the right."""
    ruler = ["---"] + ["--:"] * (len(header) - 1)
    return "\n".join([_row(header), _row(ruler), *(_row(cells) for cells in rows)])


def _contestants(results: Sequence[Result]) -> list[tuple[str, int]]:
    """Everybody but pydensecrf2, in the order they ran."""
    seen = [(timing.engine, timing.threads) for result in results for timing in result.timings]
    return [who for who in dict.fromkeys(seen) if who[0] != PEER]


def _title(who: tuple[str, int]) -> str:
    return f"{who[0]}, {who[1]} thread{'s' if who[1] > 1 else ''}" if who[0] == OURS else who[0]


def one_line(result: Result) -> str:
    """A case in one line, while the next one runs."""
    parts = []
    for timing in result.timings:
        text = f"{_title((timing.engine, timing.threads))} {milliseconds(timing.median())} ms"
        if timing.engine != PEER:
            text += f" ({times(result.speedup(timing.engine, timing.threads))})"
        parts.append(text)
    bad = [agreement for agreement in result.agreements if not agreement.good]
    return "; ".join(parts) + ("; RESULTS DIFFER" if bad else "")


def _speed_table(results: Sequence[Result], phase: str) -> str:
    """Median milliseconds of a phase, and how many times faster than pydensecrf2."""
    others = _contestants(results)
    if phase != "total":
        others = [who for who in others if who[0] != SIMPLE]
    header = ["case", f"{PEER} (ms)"]
    for who in others:
        header += [f"{_title(who)} (ms)", "speed-up"]
    rows = []
    for result in results:
        peer = result.timing(PEER)
        cells = [result.case.name, milliseconds(peer.median(phase) if peer else None)]
        for who in others:
            timing = result.timing(*who)
            cells += [milliseconds(timing.median(phase) if timing else None), times(result.speedup(*who, phase))]
        rows.append(cells)
    means = ["geometric mean", ""]
    for who in others:
        means += ["", times(geometric_mean(result.speedup(*who, phase) for result in results))]
    return table(header, [*rows, means])


def _result_table(results: Sequence[Result]) -> str:
    """Vertices a point of both lattices, and how results compare with pydensecrf2's."""
    others = _contestants(results)
    header = ["case", "M/N gaussian", "M/N bilateral"]
    for who in others:
        header += [f"{_title(who)}: labels equal", "largest difference of Q"]
    rows = []
    for result in results:
        cells = [result.case.name] + [f"{count / result.case.points:.2f}" for count in result.vertices.values()]
        for who in others:
            agreement = result.agreement(*who)
            if agreement is None:
                cells += [MISSING, MISSING]
                continue
            difference = agreement.max_difference
            cells.append(f"{agreement.equal_labels:.4%}")
            cells.append(MISSING if difference is None else f"{difference:.1e}")
        rows.append(cells)
    return table(header, rows)


def _memory_table(results: Sequence[Result]) -> str:
    """Megabytes above imports and inputs."""
    others = _contestants(results)
    header = ["case", f"{PEER} (MB)"]
    for who in others:
        header += [f"{_title(who)} (MB)", "share"]
    rows = []
    for result in results:
        cells = [result.case.name + (" (large)" if result.case in LARGE_CASES else "")]
        cells.append(megabytes(result.memory.get((PEER, 1))))
        for who in others:
            ratio = result.memory_ratio(*who)
            cells += [megabytes(result.memory.get(who)), MISSING if ratio is None else f"{ratio:.2f}"]
        rows.append(cells)
    return table(header, rows)


def markdown(results: Sequence[Result], environment: dict[str, Any], huge: MemoryUse | None) -> str:
    """All tables, under the machine they were measured on."""
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    lines = [
        f"{environment['processor']}, {environment['instruction set']}; Python {environment['python']}, "
        f"NumPy {environment['numpy']}, {versions}; commit {environment['commit']}, {environment['date']}.",
        f"Image: {environment['image']}, resized. Command: `{environment['command'].strip()}`. "
        "Medians; the engines take turns.",
    ]
    titles = {"total": "Total", "build": "Build (unary and lattices)", "inference": "Inference"}
    for phase in PHASES:
        lines += [f"### {titles[phase]}", _speed_table(results, phase)]
    lines += ["### Results and vertices", _result_table(results)]
    if any(result.memory for result in results):
        lines += ["### Peak memory above imports and inputs", _memory_table(results)]
    if huge is not None:
        lines += [
            f"### {HUGE_CASE.name}",
            f"{huge.seconds:.1f} s; peak of the whole process {huge.peak / 1e9:.2f} GB, of which inputs and imports "
            f"{(huge.peak - huge.rise) / 1e9:.2f} GB.",
        ]
    return "\n\n".join(lines) + "\n"


def as_json(results: Sequence[Result], environment: dict[str, Any], huge: MemoryUse | None) -> dict[str, Any]:
    """Every measurement, and the geometric means."""
    means = [
        {
            "engine": who[0],
            "threads": who[1],
            **{phase: geometric_mean(result.speedup(*who, phase) for result in results) for phase in PHASES},
        }
        for who in _contestants(results)
    ]
    return {
        "environment": environment,
        "results": [result.to_json() for result in results],
        "geometric_means": means,
        "huge": None if huge is None else {"case": HUGE_CASE.to_json(), **vars(huge)},
    }


def plot(results: Sequence[Result], path: Path) -> None:
    """Bars of the total speed-up of every engine on every case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    others = _contestants(results)
    height = 0.8 / len(others)
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.35 * len(results) * len(others)), layout="constrained")
    for position, who in enumerate(others):
        places = [index + position * height for index in range(len(results))]
        lengths = [result.speedup(*who) or 0.0 for result in results]
        bars = axes.barh(places, lengths, height, label=_title(who))
        axes.bar_label(bars, fmt="%.1f", padding=3)
    middle = 0.4 - height / 2
    axes.set_yticks([index + middle for index in range(len(results))], [result.case.name for result in results])
    axes.invert_yaxis()
    axes.axvline(1.0, color="grey", linewidth=1, label=PEER)
    axes.set_xlabel(f"times faster than {PEER} (median of total time)")
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def write_files(options: argparse.Namespace, text: str, data: dict[str, Any], results: Sequence[Result]) -> None:
    """What the command line asked for."""
    if options.markdown:
        options.markdown.write_text(text)
    if options.json:
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    if options.plot:
        plot(results, options.plot)
