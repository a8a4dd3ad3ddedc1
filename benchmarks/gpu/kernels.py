"""Time, bytes and bandwidth of every kernel, and what bounds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import traffic
from benchmarks.gpu.clock import GROUPS, Body, Clock, clock_for
from benchmarks.gpu.context import Context
from benchmarks.gpu.problems import Problem, cases, inferred, layer_for, make_problem, repeats
from benchmarks.gpu.section import Section
from benchmarks.gpu.traffic import ConvSizes, Sizes, Traffic
from benchmarks.gpu.training import TRAINED, training_step
from deeplab_crf.ops.lattice.operators import build_lattice

REPEATS = 20
LEGEND = (
    "MB: what one run must read and write at least, by the formulas of the kernels' comments (benchmarks/gpu/traffic.py). "
    "TB/s: that over the median time of a run in its place among the others, with the cache as they leave it, so it can be above "
    "the copy's. Bound by: the launch below 5 us, else the measured ceiling that explains most of the time; latency where none "
    "explains a third."
)
HEADER = ["kernel", "runs", "us each", "us in all", "MB", "TB/s", "of the copy", "bound by"]


@dataclass(frozen=True)
class Kernel:
    """One kernel within a body, or one of `GROUPS` as a whole. runs: in one repetition. seconds, traffic (where known): of one run,
    the median."""

    name: str
    runs: float
    seconds: float
    traffic: Traffic | None

    @property
    def bandwidth(self) -> float | None:
        """Bytes a second."""
        return None if self.traffic is None else self.traffic.memory / self.seconds


@dataclass(frozen=True)
class Part:
    """A body to profile. accounts: of those of its kernels whose work follows from ``sizes``: of one lattice, or a convolution."""

    title: str
    body: Body
    accounts: Mapping[str, Callable[[Any], Traffic]]
    sizes: Sizes | ConvSizes
    trains: bool = False


def measure(context: Context) -> Section:
    """The parts of a refinement apart, so that each kernel works on one lattice; then wholes, for the shares."""
    section, clock = context.begin("Kernels"), clock_for(context.device)
    ceilings = context.earlier["facts"]["ceilings"]
    section.data["kernels"] = {}
    for case in cases(context):
        problem = make_problem(context, case)
        for part in parts(context, problem):
            found = profiled(clock, part, repeats(context, REPEATS))
            add_table(section, f"{case.name}: {part.title}", found, ceilings)
    section.note(LEGEND)
    return section


def parts(context: Context, problem: Problem) -> list[Part]:
    """Of a refinement, and of a training step on 80/13."""
    case = problem.case
    layer = layer_for(context, problem, bounded=True)
    given = layer.problem(problem.logits, problem.image)
    one_kernel = given._replace(
        features=given.features[1:],
        normalizations=given.normalizations[1:],
        compatibilities=given.compatibilities[1:],
        keys=given.keys[1:],
    )
    terms = given.terms()
    values = torch.rand(1, case.points, case.labels, generator=torch.Generator().manual_seed(0)).to(context.device)
    dims = [features.shape[-1] for features in given.features]
    sizes = Sizes(case.points, dims[1], problem.vertices[1], case.labels, (dims[0],))
    infer = partial(inferred, given, terms, case.iterations)
    prepare = partial(layer.problem, problem.logits, problem.image)
    result = [
        Part("features and energies", prepare, traffic.PREPARATION, sizes),
        Part("build of the bilateral lattice, with its norms", one_kernel.terms, traffic.BUILD, sizes),
        Part("filter by the bilateral lattice", partial(terms[1].lattice.filter, values), traffic.FILTER, sizes),
        Part("inference, both lattices", infer, traffic.MEAN_FIELD, sizes),
    ]
    if case == cases(context)[0]:
        features = given.features[1].detach().clone().requires_grad_()
        through = partial(feature_gradient, features, values)
        result.append(Part("gradient in the features of one filter", through, traffic.GRADIENTS, sizes, trains=True))
        trained = list(TRAINED)[-1]
        step = training_step(layer_for(context, problem, trainable=TRAINED[trained]), problem)
        result.append(Part(f"training step, {trained}", step, {}, sizes, trains=True))
    return result


def feature_gradient(features: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    """Of a filter's sum, by the build and the filter of one lattice."""
    return torch.autograd.grad(build_lattice(features).filter(values), features, torch.ones_like(values))


def profiled(clock: Clock, part: Part, count: int) -> list[Kernel]:
    """The kernels of a part, the longest first."""
    result = []
    with torch.set_grad_enabled(part.trains):
        durations = clock.kernels(part.body, count)
    for name, each in durations.items():
        account = part.accounts.get(name)
        moved = account(part.sizes) if account else None
        if name in GROUPS:
            result.append(Kernel(name, 1, sum(each) / count / 1e6, moved))
        else:
            result.append(Kernel(name, len(each) / count, median(each) / 1e6, moved))
    return sorted(result, key=lambda kernel: -kernel.runs * kernel.seconds)


def add_table(section: Section, title: str, kernels: list[Kernel], ceilings: Mapping[str, float]) -> None:
    """Into the document and the raw data."""
    section.data["kernels"][title] = [{**asdict(kernel), "bandwidth": kernel.bandwidth} for kernel in kernels]
    total = sum(kernel.runs * kernel.seconds for kernel in kernels)
    rows = [row(kernel, ceilings) for kernel in kernels]
    section.table(title, HEADER, [*rows, ["all", "", "", f"{1e6 * total:.1f}", "", "", "", ""]])


def row(kernel: Kernel, ceilings: Mapping[str, float]) -> list[str]:
    """Of the table."""
    cells = [
        kernel.name,
        f"{kernel.runs:g}",
        f"{1e6 * kernel.seconds:.1f}",
        f"{1e6 * kernel.runs * kernel.seconds:.1f}",
    ]
    if kernel.traffic is None or kernel.bandwidth is None:
        bound = "launch" if kernel.seconds < traffic.LAUNCH_BOUND else "-"
        return [*cells, "-", "-", "-", bound]
    return [
        *cells,
        f"{kernel.traffic.memory / 1e6:.2f}",
        f"{kernel.bandwidth / 1e12:.2f}",
        f"{kernel.bandwidth / ceilings['copy']:.0%}",
        traffic.bounding(kernel.traffic, kernel.seconds, ceilings),
    ]
