"""Issue 4's times: build and inference of one image and of a batch, and one filter of many points."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.clock import Clock, clock_for
from benchmarks.gpu.context import Context
from benchmarks.gpu.measure import time_eagerly, time_replayed
from benchmarks.gpu.problems import (
    BATCH_SIZE,
    ROOM,
    Problem,
    cases,
    filter_points,
    inferred,
    layer_for,
    make_problem,
    repeats,
)
from benchmarks.gpu.section import Section
from deeplab_crf.ops.lattice.operators import build_lattice

# Milliseconds.
IMAGE_TARGETS = (1.0, 2.0)
BATCH_TARGET = 0.3
FILTER_TARGET = 1.0
REPEATS, BATCH_REPEATS = 50, 20


def measure(context: Context) -> Section:
    """Goals are judged by graph replays: what a caller reaches who knows a bound of the vertices."""
    section, clock = context.begin("Speed"), clock_for(context.device)
    rows = []
    with torch.no_grad():
        for case, target in zip(cases(context), IMAGE_TARGETS, strict=True):
            problem = make_problem(context, case)
            rows.append([case.name, *(f"{count / case.points:.2f}" for count in problem.vertices)])
            measure_image(section, clock, context, problem, target)
        measure_batch(section, clock, context, make_problem(context, cases(context)[0], BATCH_SIZE))
        measure_filter(section, clock, context)
    section.table("Vertices a point (M/N)", ["case", "Gaussian", "bilateral"], rows)
    section.note(
        f"A graph is captured with max_vertices {ROOM:g} times what is needed. Events: the call as a script makes it, without "
        "a bound. The second-level cache is overwritten before each run."
    )
    return section


def measure_image(section: Section, clock: Clock, context: Context, problem: Problem, target: float) -> None:
    """The whole layer, its lattices alone, and the iterations alone."""
    case, count = problem.case, repeats(context, REPEATS)
    layer = layer_for(context, problem)
    bounded = layer_for(context, problem, bounded=True)
    name = f"{case.name}: build + inference"
    time_eagerly(section, clock, name, partial(layer, problem.logits, problem.image), count)
    time_replayed(section, clock, name, partial(bounded, problem.logits, problem.image), count, target=target)

    def build() -> object:
        return bounded.problem(problem.logits, problem.image).terms()

    time_replayed(section, clock, f"{case.name}: build alone", build, count)
    given = bounded.problem(problem.logits, problem.image)
    terms = given.terms()
    body = partial(inferred, given, terms, case.iterations)
    time_replayed(section, clock, f"{case.name}: inference alone", body, count)


def measure_batch(section: Section, clock: Clock, context: Context, batch: Problem) -> None:
    """Milliseconds an image."""
    count = repeats(context, BATCH_REPEATS)
    name = f"{batch.case.name}: batch of {BATCH_SIZE}, an image"
    layer = layer_for(context, batch)
    time_eagerly(section, clock, name, partial(layer, batch.logits, batch.image), count, images=BATCH_SIZE)
    body = partial(layer_for(context, batch, bounded=True), batch.logits, batch.image)
    time_replayed(section, clock, name, body, count, images=BATCH_SIZE, target=BATCH_TARGET)


def measure_filter(section: Section, clock: Clock, context: Context) -> None:
    """Six dimensions, three channels, with the build and without."""
    features, values, vertices = filter_points(context)
    bound, count = int(ROOM * vertices) + 1, repeats(context, REPEATS)
    points = features.shape[1]
    section.note(
        f"The filter: {points} points, d = 6, 3 channels, M/N = {vertices / points:.2f}, as WarpConvNet's benchmark draws them."
    )
    name = f"filter of {points} points, d = 6"
    time_eagerly(section, clock, f"{name}: build + filter", lambda: build_lattice(features).filter(values), count)

    def build_and_filter() -> Tensor:
        return build_lattice(features, bound).filter(values)

    time_replayed(section, clock, f"{name}: build + filter", build_and_filter, count, target=FILTER_TARGET)
    lattice = build_lattice(features, bound)
    time_replayed(section, clock, f"{name}: filter alone", partial(lattice.filter, values), count)
