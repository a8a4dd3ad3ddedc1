"""What is measured: issue 4's shapes on an image, a batch, the points of WarpConvNet's benchmark; tiny ones in a rehearsal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import CASES, Case, load_image, network_unary
from benchmarks.engines import Inputs
from benchmarks.gpu.context import Context
from benchmarks.layer_engines import make_layer, tensors
from deeplab_crf import DenseCRF
from deeplab_crf.crf.dense_crf import CRFProblem
from deeplab_crf.ops.lattice.operators import build_lattice
from deeplab_crf.ops.mean_field.forward import PairwiseTerm, mean_field

DENSE, SPARSE = CASES[2], CASES[5]
TINY_DENSE = Case(44, 33, 5, 3, (3, 3), (80, 13, 10))
TINY_SPARSE = Case(44, 33, 5, 3, (1, 3), (67, 3, 4))
BATCH_SIZE = 16
ROLL = 31  # pixels between the images of a batch
# Room above the vertices that there are, as a caller would leave it who knows his images.
ROOM = 1.05

# N, d and channels of WarpConvNet's benchmark of one filter, and the widths of its features: pixels, colours, and one that is zero.
FILTER_POINTS, FILTER_CHANNELS = 512 * 384, 3
FILTER_RANGES = (512, 512, 256, 256, 256, 1)
FILTER_WIDTHS = (16.0, 16.0, 12.0, 12.0, 12.0, 1.0)


@dataclass(frozen=True)
class Problem:
    """A case with its images on a device. bound: of the vertices of each kernel's lattice over the whole batch. vertices: of each
    kernel's lattice, likewise."""

    case: Case
    logits: Tensor
    image: Tensor
    vertices: tuple[int, ...]

    @property
    def bound(self) -> int:
        """For ``max_vertices``."""
        return int(ROOM * max(self.vertices)) + 1


def cases(context: Context) -> tuple[Case, Case]:
    """80/13 and 67/3."""
    return (TINY_DENSE, TINY_SPARSE) if context.rehearsal else (DENSE, SPARSE)


def repeats(context: Context, count: int) -> int:
    """Repetitions, of which a rehearsal needs few."""
    return 2 if context.rehearsal else count


def make_problem(context: Context, case: Case, images: int = 1) -> Problem:
    """Images of a batch are rolled copies of the one. Vertices are counted by the CPU engine."""
    inputs = Inputs(load_image(context.image, case.width, case.height), network_unary(case))
    logits, image = tensors(case, inputs)
    shifts = range(0, ROLL * images, ROLL)
    logits, image = (torch.cat([each.roll((s, s), (2, 3)) for s in shifts]) for each in (logits, image))
    vertices = tuple(sum(counts) for counts in make_layer(case).vertices(logits, image))
    return Problem(case, logits.to(context.device), image.to(context.device), vertices)


def layer_for(context: Context, problem: Problem, *, bounded: bool = False, **options: Any) -> DenseCRF:
    """The case's layer on the device. bounded: with ``max_vertices``, so that nothing waits for the device."""
    bound = problem.bound if bounded else None
    return make_layer(problem.case, max_vertices=bound, **options).to(context.device)


def inferred(problem: CRFProblem, terms: list[PairwiseTerm], iterations: int) -> Tensor:
    """log Q, ``(B, N, L)``."""
    return mean_field(problem.unary, terms, iterations, order=problem.order)


def moved(problem: CRFProblem, device: str) -> CRFProblem:
    """On another device, number for number: lattices built there have the same vertices."""

    def move(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(move(each) for each in value)
        return value.to(device) if isinstance(value, Tensor) else value

    there = CRFProblem(*(move(value) for value in problem))
    return there._replace(keys=(None,) * len(there.keys))  # a lattice that was kept is one of the device it was made on


def filter_points(context: Context) -> tuple[Tensor, Tensor, int]:
    """Features ``(1, N, 6)`` over their widths, values ``(1, N, 3)``, and the number of vertices. Like WarpConvNet's: whole numbers
    at random, the last feature zero. So sparse a lattice is the hard case: nearly every corner is a vertex of its own."""
    generator = torch.Generator().manual_seed(0)
    points = 500 if context.rehearsal else FILTER_POINTS
    ranges = zip(FILTER_RANGES, FILTER_WIDTHS, strict=True)
    columns = [torch.randint(0, top, (points,), generator=generator) / width for top, width in ranges]
    features = torch.stack(columns, dim=-1)
    values = torch.randn((1, points, FILTER_CHANNELS), generator=generator)
    (vertices,) = build_lattice(features[None]).num_vertices()
    return features[None].to(context.device), values.to(context.device), vertices
