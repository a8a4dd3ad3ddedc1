"""The convolutions of the GPU's report, with a canned clock: wrong results caught, tables and goals, bytes of the kernels."""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import cases
from benchmarks.gpu import clock, conv, conv_kernels, conv_problems, traffic
from benchmarks.gpu.context import Context
from benchmarks.gpu.conv_problems import (
    CUDNN,
    EPILOGUE,
    FP32,
    PRECISIONS,
    SHIFTED,
    TINY_CASES,
    TORCH,
    WINOGRAD,
    ConvProblem,
)
from benchmarks.gpu.section import Section
from deeplab_crf.benchmark.conv import ConvCase
from deeplab_crf.ops.cuda_backend import Engine


def context(folder: Path, seconds: float = 60.0) -> Context:
    return Context("cpu", cases.SYNTHETIC, False, str(folder), time.time() + seconds)


# ---------------------------------------------------------------------------------------------------------------------- results
@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda precision: precision.name)
@pytest.mark.parametrize("case", TINY_CASES, ids=lambda case: case.name)
def test_everybody_computes_the_same(case: ConvCase, precision: conv_problems.Precision) -> None:
    problem = ConvProblem(case, 2, precision, "cpu")
    found = problem.contestants()
    possible = {TORCH, EPILOGUE}
    if len(case.rates) > 1:
        possible.add(SHIFTED)
    elif case.name == "3x3" and precision == FP32:
        possible.add(WINOGRAD)
    assert next(iter(found)) == TORCH
    assert set(found) == possible
    exact = problem.exact()
    assert exact.dtype == torch.float64
    for body in found.values():
        got = body()
        assert got.dtype == precision.dtype
        assert got.is_contiguous(memory_format=torch.channels_last)
        assert float((got.double() - exact).abs().max() / exact.abs().max()) <= precision.bound


def test_wrong_results_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(problem: ConvProblem, algorithm: str) -> torch.Tensor:
        result = problem.by_torch()
        if algorithm == "shifted":
            result[0, 0, 0, 0] = float("nan")
        return result * (1.5 if algorithm == "winograd" else 1)

    monkeypatch.setattr(ConvProblem, "by_us", wrong)
    section = Section("Convolutions")
    conv.check_results(section, context(tmp_path))
    assert section.bad == [
        "Convolutions: Winograd, fp32",
        "Convolutions: shifted, fp32",
        "Convolutions: shifted, TF32",
        "Convolutions: shifted, bf16",
    ]
    assert section.checks[2].found.endswith("(3x3)")
    conv.check_network(section, "some", torch.ones(3), torch.full((3,), 1.01))
    assert section.bad[-1] == "Convolutions: some, fused and not"


def test_what_cudnn_refuses_is_noted_and_ours_must_run(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = ConvProblem(TINY_CASES[0], 1, FP32, "cpu")
    ours = problem.contestants()

    def refuse() -> None:
        raise RuntimeError("no engine\nmore")

    monkeypatch.setattr(problem, "contestants", lambda: {**ours, CUDNN: refuse})
    section = Section("Convolutions")
    assert list(conv.runnable(section, problem)) == list(ours)
    assert section.notes == ["cuDNN fused, fp32, 3x3: not run (no engine)."]


def test_torchs_switches_come_back() -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark)
    for precision in PRECISIONS:
        with conv_problems.precision_of(precision):
            assert (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == (precision.rounds, precision.rounds, True)
    assert (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == before


# ------------------------------------------------------------------------------------------------------------------------ times
def result(case: ConvCase, batch: int, precision: str, **cold: float) -> conv.Result:
    names = {"torch": TORCH, "epilogue": EPILOGUE, "winograd": WINOGRAD, "shifted": SHIFTED, "cudnn": CUDNN}
    times = {names[who]: [milliseconds] * 3 for who, milliseconds in cold.items()}
    warm = {who: [each[0] / 2] for who, each in times.items()}
    return conv.Result(case, batch, precision, times, warm)


def test_tables_and_goals() -> None:
    dilated, pointwise, _, summed = TINY_CASES
    results = [
        result(dilated, 1, "fp32", torch=3.0, epilogue=2.9, winograd=1.5),
        result(pointwise, 1, "fp32", torch=1.0, epilogue=1.1, cudnn=0.5),
        result(summed, 1, "fp32", torch=4.0, epilogue=4.0, shifted=1.0),
        result(dilated, 8, "bf16", torch=2.0, epilogue=1.6),
    ]
    header, rows = conv.times_table(results[:2])
    assert header[5:] == [TORCH, EPILOGUE, WINOGRAD, CUDNN]
    assert rows == [
        ["3x3", "20 -> 24", "3x3", "2", "11 x 9", "3.000 (1.500)", "2.900 (1.450)", "1.500 (0.750)", "-"],
        ["1x1 up", "16 -> 40", "1x1", "1", "11 x 9", "1.000 (0.500)", "1.100 (0.550)", "-", "0.500 (0.250)"],
    ]
    header, rows = conv.fastest_table(results)
    assert header[5:] == ["1, fp32", "8, bf16"]
    assert [row[5:] for row in rows] == [
        ["Winograd 2.00x", "torch + our epilogue 1.25x"],
        ["cuDNN fused 2.00x", "-"],
        ["shifted 4.00x", "-"],
    ]
    section = Section("Convolutions")
    conv.add_goals(section, results)
    assert [(goal.name, goal.value, goal.reached) for goal in section.goals] == [
        ("convolution over torch's, slowest shape, fp32", pytest.approx(1.1), False),
        ("ASPP sum over torch's, fp32", pytest.approx(0.25), True),
        ("rates 2 and 4 over torch's, slowest, fp32", pytest.approx(0.5), True),
        ("convolution over torch's, slowest shape, bf16", pytest.approx(0.8), True),
    ]


class Canned(clock.HostClock):
    """Counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[bool] = []

    def device_milliseconds(self, body: clock.Body, repeats: int, *, cold: bool) -> list[float]:
        self.asked.append(cold)
        return [1.0] * repeats


def test_every_shape_cold_and_warm_until_the_time_is_up(tmp_path: Path) -> None:
    section, canned = Section("Convolutions"), Canned()
    found = conv.time_shapes(section, context(tmp_path), canned)
    assert len(found) == 2 * len(PRECISIONS) * len(TINY_CASES)
    assert canned.asked[:4] == [True, False] * 2
    assert len(section.tables) == 2 * len(PRECISIONS)
    assert len(section.data["convolutions"]) == len(found)
    assert section.notes == []
    late = Section("Convolutions")
    assert conv.time_shapes(late, context(tmp_path, seconds=1.0), canned) == []
    assert late.notes == ["24 of 24 combinations were not timed: the time was up."]


# ---------------------------------------------------------------------------------------------------------------------- kernels
def test_bytes_are_those_of_the_kernels_comments() -> None:
    """512 x 41 x 41: 3.4 MB, 5.2 with a residual, in bfloat16; a Winograd tile of 4 x 4 in float32, an element of which every
    input is read by one tile; 33 taps of 21 classes."""
    pixels = 41 * 41
    plain = traffic.ConvSizes(pixels, pixels, 512, 512, element=2)
    assert traffic.CONVOLUTION["finish_convolution"](plain).memory / 1e6 == pytest.approx(3.44, abs=0.01)
    added = traffic.ConvSizes(pixels, pixels, 512, 512, element=2, residual=True)
    assert traffic.CONVOLUTION["finish_convolution"](added).memory / 1e6 == pytest.approx(5.16, abs=0.01)
    tile = traffic.ConvSizes(36, 16, 1, 1, element=4, tiles=1, matrices=36)
    assert traffic.CONVOLUTION["transform_inputs"](tile) == traffic.Traffic(288, 0, 240)
    assert traffic.CONVOLUTION["transform_outputs"](tile).memory == 208
    assert traffic.CONVOLUTION["transform_weights"](tile).memory == 4 * (9 + 36)
    summed = traffic.ConvSizes(pixels, pixels, 2048, 21, element=4, gathered=33 * pixels)
    assert traffic.CONVOLUTION["gather_taps"](summed).memory / 1e6 == pytest.approx(4.8, abs=0.05)


def test_sizes_are_those_of_the_kernels(tmp_path: Path, emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_kernels, "engine_for", lambda x: Engine(emulated, (0, 0)))
    given: Any = Context("cuda", cases.SYNTHETIC, False, str(tmp_path), 0.0)
    dilated, pointwise, _, summed = (ConvProblem(case, 2, FP32, "cpu") for case in TINY_CASES)
    sizes = conv_kernels.sizes(given, dilated)
    # 9 x 11 at rate 2: phases of 5 and 4 outputs in tiles of 4, three; by phases of 6 and 5 in tiles of 3, four.
    assert (sizes.inputs, sizes.outputs, sizes.channels, sizes.filters) == (198, 198, 20, 24)
    assert (sizes.tiles, sizes.matrices) == (2 * 3 * 4, 6 * 5)
    assert conv_kernels.sizes(given, pointwise) == traffic.ConvSizes(198, 198, 16, 40, 4, residual=True)
    offsets = {(r * dy, r * dx) for r in (2, 4) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    assert conv_kernels.sizes(given, summed).gathered == 2 * sum((9 - abs(dy)) * (11 - abs(dx)) for dy, dx in offsets)
