"""The layer in training: forward and backward beside forward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.clock import clock_for
from benchmarks.gpu.context import Context
from benchmarks.gpu.measure import time_eagerly, time_replayed
from benchmarks.gpu.problems import Problem, cases, layer_for, make_problem, repeats
from benchmarks.gpu.section import Section
from deeplab_crf import DenseCRF

REPEATS = 20
GOAL = 3.5
# What is differentiated besides the logits.
TRAINED: dict[str, tuple[str, ...]] = {
    "logits": (),
    "logits and weights": ("weights",),
    "logits, weights and bandwidths": ("weights", "bandwidths"),
}


def measure(context: Context) -> Section:
    """Both ways of timing; the goal is judged by events, as training loops run."""
    section, clock = context.begin("Training"), clock_for(context.device)
    case, count = cases(context)[0], repeats(context, REPEATS)
    problem = make_problem(context, case)
    with torch.no_grad():
        name = f"{case.name}: forward"
        layer, bounded = layer_for(context, problem), layer_for(context, problem, bounded=True)
        forward = time_eagerly(section, clock, name, partial(layer, problem.logits, problem.image), count)
        time_replayed(section, clock, name, partial(bounded, problem.logits, problem.image), count)
    for trained, options in TRAINED.items():
        name = f"{case.name}: forward + backward to {trained}"
        step = training_step(layer_for(context, problem, trainable=options), problem)
        both = time_eagerly(section, clock, name, step, count)
        section.goal(f"{name}, of forward", both / forward, GOAL, "x")
        bounded = layer_for(context, problem, bounded=True, trainable=options)
        time_replayed(section, clock, name, training_step(bounded, problem), count)
    return section


def training_step(layer: DenseCRF, problem: Problem) -> Callable[[], tuple[Tensor, ...]]:
    """Gradients in the logits and the layer's parameters, from a gradient in the refined logits as a loss gives it."""
    logits = problem.logits.detach().clone().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    incoming = torch.randn(logits.shape, generator=generator).to(logits.device)
    inputs = (logits, *layer.parameters())

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(logits, problem.image), inputs, incoming)

    return step
