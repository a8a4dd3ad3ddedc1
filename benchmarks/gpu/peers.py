"""Other people's code on the same machine in the same run, where it can be had."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import load_image, network_unary
from benchmarks.engines import PEER, Inputs, find_engine, installed_version
from benchmarks.gpu.clock import Body, Clock, clock_for
from benchmarks.gpu.context import Context
from benchmarks.gpu.problems import Problem, cases, filter_points, layer_for, make_problem, repeats
from benchmarks.gpu.section import EVENTS, Section
from benchmarks.gpu.truncated_crf import SPAN, truncated_crf
from deeplab_crf.ops.lattice.operators import build_lattice

REPEATS = 20
CPU_RUNS = 3
FILTERED_CHANNELS = 3  # MONAI takes 16 at most


@dataclass(frozen=True)
class Duel:
    """A peer's body and ours for the same job."""

    peer: str
    job: str
    theirs: Body
    ours: Body


def measure(context: Context) -> Section:
    """Both by events, the call as a script makes it."""
    section, clock = context.begin("Peers"), clock_for(context.device)
    problem = make_problem(context, cases(context)[0])
    rows: list[list[str]] = []
    with torch.no_grad():
        for name, find in FINDERS.items():
            rows += attempt(section, clock, context, name, partial(find, context, problem))
    cpu = on_the_cpu(section, context, problem)
    section.table("Peers", ["", "job", "theirs (ms)", "ours (ms)", "ratio"], rows + cpu)
    section.note(
        f"The truncated CRF sees a window of {2 * SPAN + 1} x {2 * SPAN + 1} pixels: another model, so times alone are compared."
    )
    return section


def attempt(section: Section, clock: Clock, context: Context, name: str, find: Callable[[], Duel]) -> list[list[str]]:
    """A row, or none and a note: a peer that breaks is the peer's matter."""
    try:
        return [fight(section, clock, context, find())]
    except ImportError as error:
        section.note(f"{name}: not run, it cannot be imported here ({error}).")
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        section.note(f"{name}: not run to the end, {type(error).__name__}: {reason}")
    return []


def fight(section: Section, clock: Clock, context: Context, duel: Duel) -> list[str]:
    """A row. In turns would keep two working sets in the cache: one after the other, each from a cold one."""
    count = repeats(context, REPEATS)
    theirs = section.timing(f"{duel.peer}: {duel.job}", EVENTS, clock.milliseconds(duel.theirs, count)).median
    ours = section.timing(f"ours beside {duel.peer}: {duel.job}", EVENTS, clock.milliseconds(duel.ours, count)).median
    return [duel.peer, duel.job, f"{theirs:.3f}", f"{ours:.3f}", f"{theirs / ours:.1f}x"]


def truncated(context: Context, problem: Problem) -> Duel:
    """Always there."""
    theirs = partial(truncated_crf, problem.case, problem.logits, problem.image)
    ours = partial(layer_for(context, problem), problem.logits, problem.image)
    return Duel("truncated CRF in plain torch", f"{problem.case.name}, build + inference", theirs, ours)


def monai(context: Context, problem: Problem) -> Duel:
    """MONAI's filter; its wheels come without the compiled part."""
    importlib.import_module("monai._C")
    layers = importlib.import_module("monai.networks.layers.filtering")
    given = layer_for(context, problem).problem(problem.logits, problem.image)
    features = given.features[1].contiguous()
    values = torch.rand(1, features.shape[1], FILTERED_CHANNELS, device=features.device)
    channels_first = [each.transpose(1, 2).contiguous() for each in (values, features)]
    theirs = partial(layers.PHLFilter.apply, *channels_first)
    return Duel(
        "MONAI PHLFilter", f"{problem.case.name}, one bilateral filter, 3 channels", theirs, filtering(features, values)
    )


def warpconvnet(context: Context, problem: Problem) -> Duel:
    """WarpConvNet's own benchmark."""
    module = importlib.import_module("warpconvnet.nn.functional.permutohedral")
    features, values, _ = filter_points(context)

    def theirs() -> Any:
        return module.PermutohedralLattice.build(features[0]).filter(values[0], normalize=False)

    return Duel(
        "WarpConvNet",
        f"one filter of {features.shape[1]} points, d = 6, 3 channels",
        theirs,
        filtering(features, values),
    )


def filtering(features: Tensor, values: Tensor) -> Body:
    """Ours: build and filter."""
    return lambda: build_lattice(features).filter(values)


FINDERS: dict[str, Callable[[Context, Problem], Duel]] = {
    "truncated CRF": truncated,
    "MONAI PHLFilter": monai,
    "WarpConvNet": warpconvnet,
}


def on_the_cpu(section: Section, context: Context, problem: Problem) -> list[list[str]]:
    """A row for pydensecrf2 on this machine's processor, beside the first duel's time of ours."""
    engine = find_engine(PEER)
    if engine is None or not section.timings:
        section.note(f"{PEER}: not run, it is not installed here.")
        return []
    case = problem.case
    inputs = Inputs(load_image(context.image, case.width, case.height), network_unary(case))
    runs = [1e3 * engine.run(case, inputs).total for _ in range(CPU_RUNS)]
    name = f"{PEER} {installed_version(PEER)} on one core of the CPU"
    job = f"{case.name}, build + inference"
    section.timing(f"{name}: {job}", "host clock", runs)
    ours = next(timing.median for timing in section.timings if timing.name.startswith("ours"))
    return [[name, job, f"{median(runs):.0f}", f"{ours:.3f}", f"{median(runs) / ours:.0f}x"]]
