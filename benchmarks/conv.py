"""Convolutions of DeepLab, ours against torch's in both layouts, alone and with the epilogue; whole networks before and after
`fuse`.

    python -m benchmarks.conv [--quick] [--sizes 321,513,1024x512] [--json FILE] [--markdown FILE]

Results are compared before anything is timed. Then the contestants take turns, so that a busy machine slows all of them; the
fastest turn counts. With one thread, its own processor time does.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.conv_networks import NETWORKS, make_network
from benchmarks.crf import progress
from deeplab_crf.benchmark.conv import AGREEMENT, MODELS, ConvResult, distinct_cases, run_case, torch_threads
from deeplab_crf.nn import fuse

# What was wanted, as ratios to torch's better layout: convolutions with their epilogue, and networks.
GOALS = {"conv5_1": 1.8, "fc6": 1.5, "res4 3x3": 1.8, "res5 3x3": 1.8, "ASPP sum": 2.0}
NETWORK_GOAL = 1.4

CONV_HEADER = (
    "convolution", "channels", "kernel", "rates", "map", "algorithm", "torch NCHW", "torch channels_last", "ours", "faster",
    "ours NCHW", "alone", "difference",
)  # fmt: skip
NETWORK_HEADER = ("network", "input", "torch NCHW", "torch channels_last", "fused", "faster", "difference")


@dataclass(frozen=True)
class NetworkResult:
    """Seconds of the fastest forward pass."""

    name: str
    size: str
    torch_nchw: float
    torch_channels_last: float
    fused: float
    difference: float

    @property
    def speedup(self) -> float:
        """Over torch's better layout."""
        return min(self.torch_nchw, self.torch_channels_last) / self.fused


def measure_network(name: str, size: tuple[int, int], batch: int, threads: int, repeats: int) -> NetworkResult:
    """A forward pass by torch in both layouts and by the fused copy, channels_last."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    with torch.inference_mode(), torch_threads(threads):
        network = make_network(name)
        last: Any = torch.channels_last
        x = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))
        x_last = x.contiguous(memory_format=last)
        contestants = [(network, x), (copy.deepcopy(network).to(memory_format=last), x_last), (fuse(network), x_last)]
        results = [run(value) for run, value in contestants]
        difference = float((results[2] - results[0]).abs().max() / results[0].abs().max())
        seconds = [float("inf")] * 3
        for _ in range(repeats):
            for i, (run, value) in enumerate(contestants):
                start = clock()
                run(value)
                seconds[i] = min(seconds[i], clock() - start)
    return NetworkResult(name, f"{size[1]} x {size[0]}", *seconds, difference)


def conv_row(result: ConvResult) -> list[str]:
    """One line of the table."""
    case = result.case
    return [
        case.name,
        f"{case.channels} -> {case.filters}",
        f"{case.kernel}x{case.kernel}" + (f", stride {case.stride}" if case.stride > 1 else ""),
        "+".join(map(str, case.rates)),
        f"{case.width} x {case.height}",
        result.algorithm,
        *(
            report.milliseconds(result.best(who, layout, True))
            for who, layout in (("torch", "NCHW"), ("torch", "channels_last"), ("ours", "channels_last"))
        ),
        f"{result.speedup(True):.2f}x",
        report.milliseconds(result.best("ours", "NCHW", True)),
        f"{result.speedup(False):.2f}x",
        f"{result.difference:.0e}",
    ]


def network_row(result: NetworkResult) -> list[str]:
    """One line of the table."""
    times = [report.milliseconds(s) for s in (result.torch_nchw, result.torch_channels_last, result.fused)]
    return [result.name, result.size, *times, f"{result.speedup:.2f}x", f"{result.difference:.0e}"]


def goals(results: Sequence[ConvResult], networks: Sequence[NetworkResult]) -> list[str]:
    """What was wanted and what came of it."""
    reached = [(r.case.name, r.speedup(True), GOALS[r.case.name]) for r in results if r.case.name in GOALS]
    reached += [(f"{n.name}, {n.size}", n.speedup, NETWORK_GOAL) for n in networks]
    lines = [
        f"- {name}: {ratio:.2f}x, wanted {goal}x{'' if ratio >= goal else ': missed'}" for name, ratio, goal in reached
    ]
    slower = [r for r in results if r.speedup(True) < 1]
    worst = min(slower, key=lambda r: r.speedup(True), default=None)
    if worst is not None:
        lines.append(
            f"- slower than torch's better layout: {len(slower)} of {len(results)}, most of all {worst.case.name} "
            f"({worst.speedup(True):.2f}x)"
        )
    return lines


def environment(options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on."""
    from deeplab_crf import native_info

    return {
        "processor": report.processor_name(),
        "instruction set": native_info()["cpu"]["active"],
        "torch": torch.__version__,
        "threads": options.threads,
        "batch": options.batch,
        "commit": report.commit(),
        "command": "python -m benchmarks.conv " + " ".join(sys.argv[1:]),
    }


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of "321" or "1024x512" (width first)."""
    width, _, height = text.partition("x")
    return int(height or width), int(width)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conv", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="one small size, two turns, ResNet-101's convolutions alone"
    )
    parser.add_argument(
        "--sizes", default="321,513,1024x512", help="network inputs, WIDTHxHEIGHT or a side (%(default)s)"
    )
    parser.add_argument("--batch", type=int, default=1, help="images (1)")
    parser.add_argument("--threads", type=int, default=1, help="of torch and of ours (1)")
    parser.add_argument("--repeats", type=int, default=7, help="turns (7)")
    parser.add_argument("--no-networks", action="store_true", help="convolutions alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every single measurement")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the tables")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the files. Returns 1 if a network's result differs from torch's by more than allowed."""
    options = parse_arguments(arguments)
    sizes = [(65, 65)] if options.quick else [parse_size(text) for text in options.sizes.split(",")]
    models = ("v2-resnet101",) if options.quick else tuple(MODELS)
    repeats = min(options.repeats, 2) if options.quick else options.repeats
    where = environment(options)
    lines = [", ".join(f"{key} {value}" for key, value in where.items()) + ". Milliseconds, the fastest turn."]
    results, networks = [], []
    for size in sizes:
        here = []
        for case in distinct_cases(models, *size):
            progress(f"{size[1]} x {size[0]}: {case.name}")
            here.append(run_case(case, batch=options.batch, threads=options.threads, repeats=repeats))
        lines += [f"### Input {size[1]} x {size[0]}", report.table(CONV_HEADER, [conv_row(result) for result in here])]
        results += here
    for name in () if options.quick or options.no_networks else NETWORKS:
        for size in sizes:
            progress(f"{name}, {size[1]} x {size[0]}")
            networks.append(measure_network(name, size, options.batch, options.threads, repeats))
    if networks:
        lines += ["### Networks", report.table(NETWORK_HEADER, [network_row(result) for result in networks])]
    lines += ["### Goals", "\n".join(goals(results, networks))]
    text = "\n\n".join(lines) + "\n"
    print(text)
    if options.markdown:
        options.markdown.write_text(text)
    if options.json:
        options.json.write_text(json.dumps({"environment": where, "convolutions": [_as_dict(result) for result in results],
                                            "networks": [asdict(result) for result in networks]}, indent=1) + "\n")  # fmt: skip
    bad = [result.name for result in networks if not result.difference <= AGREEMENT]
    if bad:
        progress(f"results differ by more than allowed: {', '.join(bad)}. Do not trust the times")
    return 1 if bad else 0


def _as_dict(result: ConvResult) -> dict[str, Any]:
    seconds = {
        f"{who}, {layout}{', with epilogue' if epilogue else ''}": times
        for (who, layout, epilogue), times in result.seconds.items()
    }
    return {
        "case": asdict(result.case),
        "algorithm": result.algorithm,
        "difference": result.difference,
        "seconds": seconds,
    }


if __name__ == "__main__":
    sys.exit(main())
