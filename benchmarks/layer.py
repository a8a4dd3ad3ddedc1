"""The torch layer: against the NumPy function, training against inference, batches against single calls, reuse against rebuilding.

    python -m benchmarks.layer [--quick] [--json FILE] [--markdown FILE]

Results are compared before anything is timed. Then the contestants take turns, so that a busy machine slows all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import layer_engines as engines
from benchmarks import report
from benchmarks.cases import CASES, SYNTHETIC, Case, default_image, load_image, network_unary
from benchmarks.crf import available_threads, progress, time_in_turns
from benchmarks.engines import Inputs
from benchmarks.memory import MemoryUse, measure
from benchmarks.results import Timing

FORWARD = (engines.NUMPY, engines.LAYER, engines.REBUILDING)
TRAINING = (
    engines.LAYER,
    engines.TRAIN_LOGITS,
    engines.TRAIN_WEIGHTS,
    engines.TRAIN_ALL,
    engines.RECOMPUTE,
    engines.IMPLICIT,
    engines.TRAIN_REBUILDING,
)
MAIN_CASE = CASES[1]
SPARSE_CASE = Case(500, 375, 21, 5, (1, 3), (67, 3, 4))
QUICK_CASE = CASES[0]

# Largest difference of probabilities, and of gradients relative to the largest; implicit ones are another thing by definition.
BOUNDS = {"forward": 1e-4, "training": 1e-4}

# What was wanted of the main case: name, the ratio, and whether it is to stay below.
FORWARD_GOAL, TRAINING_GOAL, BATCH_GOAL = 1.15, 3.5, 1.8


@dataclass
class Group:
    """Contestants that were timed in turns on one case. differences: from the first that has comparable results, by name."""

    title: str
    case: Case
    timings: list[Timing]
    differences: dict[str, float] = field(default_factory=dict)
    memory: dict[str, MemoryUse] = field(default_factory=dict)

    def seconds(self, name: str, threads: int) -> float:
        """Median of one contestant."""
        found = next(t for t in self.timings if (t.engine, t.threads) == (name, threads)).median()
        assert found is not None
        return found

    def to_json(self) -> dict[str, Any]:
        """Every repetition."""
        return {
            "title": self.title,
            "case": self.case.to_json(),
            "timings": [asdict(timing) for timing in self.timings],
            "differences": self.differences,
            "memory": {name: asdict(use) for name, use in self.memory.items()},
        }


def compare(case: Case, inputs: Inputs, names: Sequence[str], threads: int) -> dict[str, float]:
    """Run each once and say how far its result is from the first one's, relative to the largest of that (at least 1 for
    probabilities)."""
    reference, differences = None, {}
    for name in names:
        result = engines.find_engine(name, threads).run(case, inputs).result
        if reference is None:
            reference = result
            continue
        differences[name] = float(np.abs(result - reference).max() / np.abs(reference).max())
    return differences


def measure_forward(case: Case, inputs: Inputs, threads: Sequence[int], repeats: int) -> Group:
    """The NumPy function, the layer, and the rebuilding one."""
    differences = compare(case, inputs, FORWARD, max(threads))
    contestants = [engines.find_engine(name, count) for count in threads for name in FORWARD]
    return Group("forward", case, time_in_turns(case, inputs, contestants, repeats), differences)


def measure_training(case: Case, inputs: Inputs, threads: int, repeats: int, image: str | None) -> Group:
    """Forward and backward passes beside the forward pass alone. image: also weigh them on this image, each in a process."""
    differences = compare(case, inputs, TRAINING[1:], threads)
    contestants = [engines.find_engine(name, threads) for name in TRAINING]
    group = Group("training", case, time_in_turns(case, inputs, contestants, repeats), differences)
    if image is not None:
        for name in TRAINING:
            group.memory[name] = measure(name, threads, case, image, engines=engines.__name__)
    return group


def measure_batch(case: Case, inputs: Inputs, threads: int, repeats: int) -> Group:
    """One call for the batch, and a call for each image, with one thread and with all."""
    differences = compare(case, inputs, (engines.CALLS, engines.BATCH), threads)
    wanted = [(engines.CALLS, 1), (engines.CALLS, threads), (engines.BATCH, threads)]
    contestants = [engines.find_engine(name, count) for name, count in wanted]
    return Group("batch", case, time_in_turns(case, inputs, contestants, repeats), differences)


def bad_results(group: Group) -> list[str]:
    """Contestants whose results are not what they should be."""
    bound = BOUNDS.get(group.title, 0.0)
    return [
        name for name, difference in group.differences.items() if name != engines.IMPLICIT and not difference <= bound
    ]


def forward_table(group: Group) -> str:
    """A row for each number of threads."""
    rows = []
    for threads in dict.fromkeys(timing.threads for timing in group.timings):
        numpy, layer, rebuilding = (group.seconds(name, threads) for name in FORWARD)
        cells = [f"{threads} thread{'s' if threads > 1 else ''}"]
        cells += [report.milliseconds(numpy), report.milliseconds(layer), f"{layer / numpy:.2f}x"]
        rows.append([*cells, report.milliseconds(rebuilding), f"{rebuilding / layer:.2f}x"])
    return report.table(["", f"{engines.NUMPY} (ms)", "layer (ms)", "of NumPy", "rebuilding (ms)", "of layer"], rows)


def training_table(group: Group) -> str:
    """A row for each way to train."""
    threads = group.timings[0].threads
    forward = group.seconds(engines.LAYER, threads)
    rows = []
    for name in TRAINING:
        seconds = group.seconds(name, threads)
        difference = group.differences.get(name)
        label = "forward alone" if name == engines.LAYER else name
        cells = [label, report.milliseconds(seconds), f"{seconds / forward:.2f}x"]
        cells += [report.megabytes(group.memory.get(name)), "" if difference is None else f"{difference:.1e}"]
        rows.append(cells)
    return report.table(["", "ms", "of forward", "memory (MB)", "gradient differs by"], rows)


def batch_table(group: Group) -> str:
    """A row for each way to refine a batch."""
    threads = max(timing.threads for timing in group.timings)
    single = group.seconds(engines.CALLS, 1)
    rows = []
    for timing in group.timings:
        seconds = group.seconds(timing.engine, timing.threads)
        title = f"{timing.engine}, {timing.threads} thread{'s' if timing.threads > 1 else ''}"
        rows.append([title, report.milliseconds(seconds), f"{single / seconds:.2f}x"])
    return report.table([f"{engines.BATCH_SIZE} images, {threads} processors", "ms", "speed-up"], rows)


def goals(groups: Sequence[Group]) -> list[str]:
    """What was wanted of the first case, and what came out."""
    forward, training, batch = (
        next(group for group in groups if group.title == t) for t in ("forward", "training", "batch")
    )
    lines = []
    for threads in dict.fromkeys(timing.threads for timing in forward.timings):
        ratio = forward.seconds(engines.LAYER, threads) / forward.seconds(engines.NUMPY, threads)
        lines.append(
            _goal(f"forward of the NumPy function, {threads} thread(s)", ratio, FORWARD_GOAL, ratio <= FORWARD_GOAL)
        )
    threads = training.timings[0].threads
    for name in (engines.TRAIN_LOGITS, engines.TRAIN_WEIGHTS, engines.TRAIN_ALL):
        ratio = training.seconds(name, threads) / training.seconds(engines.LAYER, threads)
        lines.append(_goal(f"{name}: forward and backward of forward", ratio, TRAINING_GOAL, ratio <= TRAINING_GOAL))
    threads = max(timing.threads for timing in batch.timings)
    ratio = batch.seconds(engines.CALLS, 1) / batch.seconds(engines.BATCH, threads)
    if threads > 1:
        lines.append(_goal(f"batch on {threads} processors", ratio, BATCH_GOAL, ratio >= BATCH_GOAL))
    return lines


def _goal(what: str, ratio: float, goal: float, reached: bool) -> str:
    return f"- {what}: {ratio:.2f}x, wanted {goal}x: {'reached' if reached else 'MISSED'}"


def environment(image: str, threads: Sequence[int]) -> dict[str, Any]:
    """As of the other benchmark, and torch."""
    import torch

    command = "python -m benchmarks.layer " + " ".join(sys.argv[1:])
    return {**report.environment(image, threads), "command": command.strip(), "torch": torch.__version__}


def markdown(groups: Sequence[Group], environment: dict[str, Any]) -> str:
    """All tables, under the machine they were measured on."""
    lines = [
        f"{environment['processor']}, {environment['instruction set']}; Python {environment['python']}, "
        f"NumPy {environment['numpy']}, torch {environment['torch']}; commit {environment['commit']}, "
        f"{environment['date']}. Image: {environment['image']}. Command: "
        f"`{environment['command']}`. Medians; the contestants take turns.",
        "\n".join(goals(groups)),
    ]
    tables = {"forward": forward_table, "training": training_table, "batch": batch_table}
    for group in groups:
        lines += [f"### {group.title.capitalize()}, {group.case.name}", tables[group.title](group)]
    return "\n\n".join(lines) + "\n"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layer", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smaller image, two repetitions, no memory")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each contestant (7)")
    parser.add_argument("--threads", type=int, default=available_threads(), help="at most; all processors by default")
    parser.add_argument("--image", default=default_image(), help=f"image, or '{SYNTHETIC}' (%(default)s)")
    parser.add_argument("--no-memory", action="store_true", help="skip the memory measurements")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every single measurement")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the tables")
    options = parser.parse_args(arguments)
    for name in ("repeats", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"argument --{name}: must be at least 1; got {getattr(options, name)}")
    if options.image != SYNTHETIC and not Path(options.image).is_file():
        parser.error(f"argument --image: no such file: {options.image}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the files. Returns 1 if results that should agree do not."""
    options = parse_arguments(arguments)
    cases = (QUICK_CASE,) if options.quick else (MAIN_CASE, SPARSE_CASE)
    repeats = min(options.repeats, 2) if options.quick else options.repeats
    counts = sorted({1, options.threads})
    weighed = None if options.quick or options.no_memory else options.image
    groups = []
    for case in cases:
        inputs = Inputs(load_image(options.image, case.width, case.height), network_unary(case))
        progress(f"{case.name}: forward")
        groups.append(measure_forward(case, inputs, counts, repeats))
        progress(f"{case.name}: training")
        groups.append(measure_training(case, inputs, options.threads, repeats, weighed))
        if case == cases[0]:
            progress(f"{case.name}: batch")
            groups.append(measure_batch(case, inputs, options.threads, repeats))
    where = environment(options.image, counts)
    text = markdown(groups, where)
    print(text)
    if options.markdown:
        options.markdown.write_text(text)
    if options.json:
        data = {"environment": where, "groups": [group.to_json() for group in groups]}
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    bad = [f"{group.title} of {name}" for group in groups for name in bad_results(group)]
    if bad:
        progress(f"results differ by more than allowed: {', '.join(bad)}. Do not trust the times")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
