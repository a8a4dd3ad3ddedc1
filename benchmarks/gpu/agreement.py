"""Whether the GPU computes what the CPU does, the same bits every time, and each image of a batch what it is alone. Before any
time is taken."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.gpu.clock import clock_for
from benchmarks.gpu.context import Context
from benchmarks.gpu.problems import (
    BATCH_SIZE,
    Problem,
    cases,
    inferred,
    layer_for,
    make_problem,
    moved,
)
from benchmarks.gpu.section import Section
from benchmarks.layer_engines import make_layer

PROBABILITY_BOUND = 1e-5
# Relative to the largest entry.
GRADIENT_BOUND = 1e-4
SMALL_BOUND = 16


def measure(context: Context) -> Section:
    """All of it on 80/13, and what depends on the vertices on 67/3."""
    section = context.begin("Agreement")
    dense, sparse = cases(context)
    for case in (dense, sparse):
        problem = make_problem(context, case)
        check_probabilities(section, context, problem)
        check_bits(section, context, problem)
    check_gradients(section, context, make_problem(context, dense))
    check_batch(section, context, dense, BATCH_SIZE)
    check_small_bound(section, context, make_problem(context, dense))
    return section


def check_probabilities(section: Section, context: Context, problem: Problem) -> None:
    """CPU against device on the same features, hence the same vertices; and the whole layer, whose features may round otherwise."""
    case = problem.case
    layer = make_layer(case)
    logits, image = problem.logits.cpu(), problem.image.cpu()
    given = layer.problem(logits, image)
    want = inferred(given, given.terms(), case.iterations).exp()
    on_device = moved(given, context.device)
    got = inferred(on_device, on_device.terms(), case.iterations).exp()
    difference = largest_difference(got, want)
    name = f"probabilities of CPU and device, {case.name}, same vertices"
    section.check(name, f"{difference:.1e}", f"<= {PROBABILITY_BOUND:.0e}", difference <= PROBABILITY_BOUND)
    with torch.no_grad():
        whole = largest_difference(
            layer_for(context, problem)(problem.logits, problem.image).exp(), layer(logits, image).exp()
        )
    section.data[f"layer, {case.name}"] = whole
    section.note(f"{case.name}: the whole layer differs from the CPU's by {whole:.1e}, features of its own included.")


def check_bits(section: Section, context: Context, problem: Problem) -> None:
    """Two runs, and a replay of a graph."""
    layer = layer_for(context, problem)
    bounded = layer_for(context, problem, bounded=True)
    with torch.no_grad():
        first, second = (layer(problem.logits, problem.image) for _ in range(2))
        section.check(f"two runs, {problem.case.name}", *same_bits(first, second))
        section.check(
            f"with a bound of the vertices, {problem.case.name}",
            *same_bits(bounded(problem.logits, problem.image), first),
        )
        try:
            replay = clock_for(context.device).capture(lambda: bounded(problem.logits, problem.image))
        except (RuntimeError, ValueError) as error:
            found = str(error).strip().split("\n")[0]
            section.check(f"a CUDA graph, {problem.case.name}", found, "the same bits", False)
            return
        replay.run()
        bounded.check()
        section.check(f"a CUDA graph, {problem.case.name}", *same_bits(replay.result, first))


def check_batch(section: Section, context: Context, case: Case, size: int) -> None:
    """Each image of a batch against its run alone."""
    batch = make_problem(context, case, size)
    layer = layer_for(context, batch)
    with torch.no_grad():
        together = layer(batch.logits, batch.image)
        alone = [layer(*pair) for pair in zip(batch.logits.split(1), batch.image.split(1), strict=True)]
    section.check(f"each image of a batch of {size} and alone", *same_bits(together, torch.cat(alone)))


def check_gradients(section: Section, context: Context, problem: Problem) -> None:
    """In the unary energies and in the features of both kernels, CPU against device on the same features."""
    case = problem.case
    given = make_layer(case).problem(problem.logits.cpu(), problem.image.cpu())
    incoming = torch.randn(given.unary.shape, generator=torch.Generator().manual_seed(0))
    found: list[list[Tensor]] = []
    for device in ("cpu", context.device):
        here = moved(given, device)
        unary, *features = (each.detach().clone().requires_grad_() for each in (here.unary, *here.features))
        here = here._replace(unary=unary, features=tuple(features))
        log_q = inferred(here, here.terms(), case.iterations)
        gradients = torch.autograd.grad(log_q, (unary, *features), incoming.to(device))
        found.append([gradient.cpu() for gradient in gradients])
    names = ("energies", "features of the Gaussian kernel", "features of the bilateral kernel")
    for name, want, got in zip(names, *found, strict=True):
        difference = largest_difference(got, want) / float(want.abs().max())
        good = difference <= GRADIENT_BOUND
        section.check(f"gradient in the {name}, {case.name}", f"{difference:.1e}", f"<= {GRADIENT_BOUND:.0e}", good)


def check_small_bound(section: Section, context: Context, problem: Problem) -> None:
    """Is reported: on a GPU after the fact."""
    layer = make_layer(problem.case, max_vertices=SMALL_BOUND).to(context.device)
    try:
        with torch.no_grad():
            layer(problem.logits, problem.image)
        layer.check()
    except ValueError as error:
        section.check("a bound that is too small", str(error).split("\n")[0], "ValueError", True)
    else:
        section.check("a bound that is too small", "nothing", "ValueError", False)


def largest_difference(got: Tensor, want: Tensor) -> float:
    """Over all entries; NaN if any is."""
    return float((got.cpu().double() - want.cpu().double()).abs().max())


def same_bits(got: Tensor, want: Tensor) -> tuple[str, str, bool]:
    """Found, wanted and verdict of a check. Bits, so that NaN equals itself and 0 does not equal -0."""
    bits = [each.contiguous().view(torch.int32) for each in (got, want)]
    other = int((bits[0] != bits[1]).sum())
    finite = bool(torch.isfinite(got).all())
    found = ("the same bits" if other == 0 else f"{other} entries differ") + ("" if finite else ", not all finite")
    return found, "the same bits", other == 0 and finite
