"""DeepLab's convolutions: ours, by each algorithm that can, beside torch's with cuDNN's search and the same epilogue; the kernels
around the products; whole networks before and after `fuse`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.conv_networks import NETWORKS, make_network
from benchmarks.gpu.clock import Body, Clock, clock_for
from benchmarks.gpu.context import Context
from benchmarks.gpu.conv_kernels import parts
from benchmarks.gpu.conv_problems import (
    BATCHES,
    FP32,
    OURS,
    PRECISIONS,
    SIZE,
    TORCH,
    ConvProblem,
    Precision,
    conv_cases,
    precision_of,
)
from benchmarks.gpu.kernels import LEGEND, add_table, profiled
from benchmarks.gpu.measure import time_eagerly, time_replayed
from benchmarks.gpu.problems import repeats
from benchmarks.gpu.section import Section
from deeplab_crf.benchmark.conv import ConvCase
from deeplab_crf.nn import fuse

REPEATS, NETWORK_REPEATS = 8, 10
# Ours over torch's time: issue 5.
SHAPE_GOAL, DILATED_GOAL, SUM_GOAL = 1.0, 0.667, 0.5
# Of a network's scores between fused and not, relative to the largest.
NETWORK_BOUND = 1e-3
# Seconds that writing the tables takes.
MARGIN = 3.0
HEADER = ["convolution", "channels", "kernel", "rates", "map"]


@dataclass
class Result:
    """Milliseconds of every repetition, by who computed, from a cold cache and from a warm one."""

    case: ConvCase
    batch: int
    precision: str
    cold: dict[str, list[float]]
    warm: dict[str, list[float]]

    def time(self, who: str) -> float:
        """Median, cold."""
        return median(self.cold[who])

    @property
    def fastest(self) -> str:
        """Of all."""
        return min(self.cold, key=self.time)

    @property
    def ratio_of_ours(self) -> float:
        """Of our fastest over torch's time."""
        return min(self.time(who) for who in OURS if who in self.cold) / self.time(TORCH)


def measure(context: Context) -> Section:
    """Results first. The shapes come last, the batches in their order, for as long as there is time."""
    section, clock = context.begin("Convolutions"), clock_for(context.device)
    # Not in inference mode: the weights made here would not be kept, transformed, from call to call.
    with torch.no_grad():
        check_results(section, context)
        profile_kernels(section, context, clock)
        time_networks(section, context, clock)
        results = time_shapes(section, context, clock)
    add_goals(section, results)
    section.table("Fastest by shape, cold, and how many times torch's speed that is", *fastest_table(results))
    section.note(
        f"Inputs of {SIZE} x {SIZE}, channels_last, cuDNN with its search. Everything has the epilogue that the network has. Times "
        "are the device's: launches are queued before it begins. Cold: the second-level cache is overwritten before each run."
    )
    return section


# --------------------------------------------------------------------------------------------------------------------- right or not
def check_results(section: Section, context: Context) -> None:
    """Everybody against float64, one image of each shape; the worst shape counts. Who cannot run at all here is noted."""
    for precision in PRECISIONS:
        worst: dict[str, tuple[float, str]] = {}
        with precision_of(precision):
            for case in conv_cases(context):
                for who, error in errors_of(section, ConvProblem(case, 1, precision, context.device)).items():
                    # A NaN is the worst of all.
                    if who not in worst or not error <= worst[who][0]:
                        worst[who] = (error, case.name)
        for who, (error, name) in worst.items():
            wanted = f"<= {precision.bound:.0e}"
            section.check(f"{who}, {precision.name}", f"{error:.1e} ({name})", wanted, error <= precision.bound)


def errors_of(section: Section, problem: ConvProblem) -> dict[str, float]:
    """Relative to the largest value."""
    want = problem.exact()
    scale = want.abs().max()
    found = {}
    for who, body in runnable(section, problem).items():
        found[who] = float((body().double() - want).abs().max() / scale)
    return found


def runnable(section: Section, problem: ConvProblem) -> dict[str, Body]:
    """Contestants without those that this torch or cuDNN refuses; ours and torch's must run."""
    found = problem.contestants()
    for who in set(found) - {TORCH, *OURS}:
        reason = why_refused(found[who])
        if reason is not None:
            del found[who]
            section.note(f"{who}, {problem.precision.name}, {problem.case.name}: not run ({reason}).")
    return found


def why_refused(body: Body) -> str | None:
    """None if it runs."""
    try:
        body()
    except (RuntimeError, AttributeError) as error:
        return str(error).strip().split("\n")[0]
    return None


# ---------------------------------------------------------------------------------------------------------------------------- times
def time_shapes(section: Section, context: Context, clock: Clock) -> list[Result]:
    """Batch by batch, so that what is left out when the time is up are large ones. Raw times go to the data."""
    results: list[Result] = []
    data = section.data["convolutions"] = []
    left_out = 0
    for batch in (1, 2) if context.rehearsal else BATCHES:
        for precision in PRECISIONS:
            here = []
            for case in conv_cases(context):
                if context.seconds_left() < MARGIN:
                    left_out += 1
                    continue
                here.append(time_shape(section, clock, ConvProblem(case, batch, precision, context.device), context))
            results += here
            data += [asdict(result) for result in here]
            if here:
                section.table(f"Batch {batch}, {precision.name}: milliseconds, cold (warm)", *times_table(here))
    if left_out:
        section.note(f"{left_out} of {left_out + len(results)} combinations were not timed: the time was up.")
    return results


def time_shape(section: Section, clock: Clock, problem: ConvProblem, context: Context) -> Result:
    """Everybody on one problem."""
    count = repeats(context, REPEATS)
    result = Result(problem.case, problem.x.shape[0], problem.precision.name, {}, {})
    with precision_of(problem.precision):
        for who, body in runnable(section, problem).items():
            result.cold[who] = clock.device_milliseconds(body, count, cold=True)
            result.warm[who] = clock.device_milliseconds(body, count, cold=False)
    return result


def described(case: ConvCase) -> list[str]:
    """For `HEADER`."""
    stride = f", stride {case.stride}" if case.stride > 1 else ""
    return [
        case.name,
        f"{case.channels} -> {case.filters}",
        f"{case.kernel}x{case.kernel}{stride}",
        "+".join(map(str, case.rates)),
        f"{case.width} x {case.height}",
    ]


def times_table(results: Iterable[Result]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a row a shape, a column for everybody."""
    results = list(results)
    everybody = list(dict.fromkeys(who for result in results for who in result.cold))

    def cell(result: Result, who: str) -> str:
        return f"{result.time(who):.3f} ({median(result.warm[who]):.3f})" if who in result.cold else "-"

    rows = [[*described(result.case), *(cell(result, who) for who in everybody)] for result in results]
    return [*HEADER, *everybody], rows


def fastest_table(results: Iterable[Result]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a row a shape, a column for each batch and precision."""
    by_case: dict[ConvCase, dict[str, Result]] = {}
    for result in results:
        by_case.setdefault(result.case, {})[f"{result.batch}, {result.precision}"] = result
    columns = list(dict.fromkeys(column for found in by_case.values() for column in found))

    def cell(result: Result | None) -> str:
        if result is None:
            return "-"
        return f"{result.fastest} {result.time(TORCH) / result.time(result.fastest):.2f}x"

    rows = [[*described(case), *(cell(found.get(column)) for column in columns)] for case, found in by_case.items()]
    return [*HEADER, *columns], rows


def add_goals(section: Section, results: Iterable[Result]) -> None:
    """Our fastest algorithm over torch's time: the slowest shape of each precision; of the sums; of fp32 at rates 2 and 4."""
    results = list(results)
    groups: dict[str, tuple[float, list[Result]]] = {}
    for precision in PRECISIONS:
        of_precision = [result for result in results if result.precision == precision.name]
        groups[f"convolution over torch's, slowest shape, {precision.name}"] = (SHAPE_GOAL, of_precision)
        sums = [result for result in of_precision if len(result.case.rates) > 1]
        groups[f"ASPP sum over torch's, {precision.name}"] = (SUM_GOAL, sums)
        if precision == FP32:
            dilated = [result for result in of_precision if result.case.rates in ((2,), (4,))]
            groups["rates 2 and 4 over torch's, slowest, fp32"] = (DILATED_GOAL, dilated)
    for name, (target, members) in groups.items():
        if members:
            section.goal(name, max(result.ratio_of_ours for result in members), target, "x")


# --------------------------------------------------------------------------------------------------------------- kernels, networks
def profile_kernels(section: Section, context: Context, clock: Clock) -> None:
    """Bytes and bandwidths of the passes around the products."""
    ceilings: Mapping[str, float] = context.earlier["facts"]["ceilings"]
    section.data["kernels"] = {}
    for precision, part in parts(context):
        with precision_of(precision):
            add_table(section, part.title, profiled(clock, part, repeats(context, REPEATS)), ceilings)
    section.note(LEGEND)


def time_networks(section: Section, context: Context, clock: Clock) -> None:
    """A forward pass as a script makes it, and as a replayed graph."""
    for name, network in networks(context).items():
        last: Any = network.to(context.device)
        last = last.to(memory_format=torch.channels_last)
        fused = fuse(last)
        for precision in PRECISIONS:
            plain, ours = (copy.deepcopy(each).to(precision.dtype) for each in (last, fused))
            for batch in (1,) if context.rehearsal else (1, 8):
                x = network_input(context, batch, precision)
                with precision_of(precision):
                    if precision == FP32 and batch == 1:
                        check_network(section, name, plain(x), ours(x))
                    for who, each in ((TORCH, plain), ("fused", ours)):
                        title = f"{name}, batch {batch}, {precision.name}, {who}: an image"
                        body = partial(each, x)
                        count = repeats(context, NETWORK_REPEATS)
                        time_eagerly(section, clock, title, body, count, images=batch)
                        time_replayed(section, clock, title, body, count, images=batch)


def networks(context: Context) -> dict[str, torch.nn.Module]:
    """With random weights, in eval mode."""
    if not context.rehearsal:
        return {name: make_network(name) for name in NETWORKS}
    layers = (
        torch.nn.Conv2d(3, 16, 3, padding=1),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 16, 1),
    )
    return {"a small network": torch.nn.Sequential(*layers).eval()}


def network_input(context: Context, batch: int, precision: Precision) -> Tensor:
    """channels_last."""
    size = 9 if context.rehearsal else SIZE
    generator = torch.Generator(context.device).manual_seed(0)
    x = torch.randn((batch, 3, size, size), generator=generator, device=context.device)
    return x.to(precision.dtype).contiguous(memory_format=torch.channels_last)


def check_network(section: Section, name: str, want: Tensor, got: Tensor) -> None:
    """Relative to the largest score."""
    difference = float((got - want).abs().max() / want.abs().max())
    good = difference <= NETWORK_BOUND
    section.check(f"{name}, fused and not", f"{difference:.1e}", f"<= {NETWORK_BOUND:.0e}", good)
