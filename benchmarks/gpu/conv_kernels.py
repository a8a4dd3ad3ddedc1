"""The passes of a convolution around a library's products, with what they must move: for the table of kernels."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.gpu.context import Context
from benchmarks.gpu.conv_problems import FP32, PRECISIONS, ConvProblem, Precision, conv_cases
from benchmarks.gpu.kernels import Part
from benchmarks.gpu.traffic import CONVOLUTION, ConvSizes
from deeplab_crf.benchmark.conv import ConvCase
from deeplab_crf.ops.conv.cuda import find_taps
from deeplab_crf.ops.conv.shapes import Shape, known_shape, make_geometry
from deeplab_crf.ops.cuda_backend import engine_for

BATCH = 8


def parts(context: Context) -> list[tuple[Precision, Part]]:
    """The pass behind torch's convolution with residual, in fp32 and bf16; the transforms; the sum of shifted products."""
    cases = conv_cases(context)
    with_residual = [case for case in cases if "residual" in case.epilogue][-1]
    dilated = [case for case in cases if case.kernel == 3 and case.rates == (2,)][-1]
    summed = [case for case in cases if len(case.rates) > 1][-1]
    batch = 1 if context.rehearsal else BATCH
    found = [
        part(context, with_residual, batch, precision, "torch") for precision in PRECISIONS if not precision.rounds
    ]
    # All tiles of one image go through the workspace at once: what the accounts count.
    found.append(part(context, dilated, 1, FP32, "winograd"))
    found += [part(context, summed, batch, precision, "shifted") for precision in PRECISIONS if not precision.rounds]
    return found


def part(context: Context, case: ConvCase, batch: int, precision: Precision, algorithm: str) -> tuple[Precision, Part]:
    """One problem by one algorithm."""
    problem = ConvProblem(case, batch, precision, context.device)
    title = f"{case.name}, batch {batch}, {precision.name}: {algorithm}"
    return precision, Part(title, partial(problem.by_us, algorithm), CONVOLUTION, sizes(context, problem))


def sizes(context: Context, problem: ConvProblem) -> ConvSizes:
    """For the accounts."""
    case, batch = problem.case, problem.x.shape[0]
    geometry = make_geometry(*([size, size] for size in (case.stride, case.padding, case.rates[0])))
    shape = known_shape(problem.x.shape, problem.weights[0].shape, None, None, geometry)
    tiles, matrices = winograd_tiles(context, problem.x, shape) if case.kernel == 3 and case.stride == 1 else (0, 0)
    offsets = find_taps(problem.weights, case.rates, problem.x.shape[2:]).offsets if len(case.rates) > 1 else ()
    return ConvSizes(
        inputs=batch * case.height * case.width,
        outputs=batch * shape[3][1] * shape[4][1],
        channels=case.channels,
        filters=case.filters,
        element=problem.x.element_size(),
        residual=problem.residual is not None,
        tiles=tiles,
        matrices=matrices,
        gathered=batch * sum((case.height - abs(dy)) * (case.width - abs(dx)) for dy, dx in offsets),
    )


def winograd_tiles(context: Context, x: torch.Tensor, shape: Shape) -> tuple[int, int]:
    """Tiles and matrices; a rehearsal has no kernels to account for."""
    if context.rehearsal:
        return 0, 0
    rows, columns, tiles = engine_for(x).module.winograd_tiles(shape)
    return tiles, (rows + 2) * (columns + 2)
