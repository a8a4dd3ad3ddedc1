"""dilated_conv2d and aspp_sum compared with float64 for every algorithm."""

from __future__ import annotations

import math

import pytest
import torch
from conv_samples import LAYOUTS, Sizes, error, expected, tensors

import deeplab_crf
from deeplab_crf import aspp_sum, conv_algorithm, dilated_conv2d
from deeplab_crf.benchmark.conv import torch_threads
from deeplab_crf.ops.conv.operators import chosen_algorithm
from deeplab_crf.ops.conv.packed_weights import forget_weights

BOUNDS = {"torch": 1e-5, "direct": 1e-5, "shifted": 1e-5, "winograd": 1e-4}

# One off from the edges of tiles (4 outputs a phase), packs (4, 8, 16 lanes), panels (8, 16, 64 filters) and blocks of rows (6,
# 48).
SIZES = [
    Sizes(1, 1, 1, 1, 1),
    Sizes(2, 5, 7, 13, 9, padding=(2, 2), dilation=(2, 2)),
    Sizes(1, 16, 64, 16, 17),
    Sizes(1, 17, 65, 15, 49, padding=(3, 2), dilation=(3, 2)),
    Sizes(3, 15, 63, 7, 50, padding=(0, 0)),
    Sizes(1, 8, 15, 8, 97, padding=(4, 4), dilation=(4, 4)),
    Sizes(1, 33, 16, 11, 12, padding=(12, 12), dilation=(12, 12)),
    Sizes(2, 9, 17, 9, 5, padding=(24, 9), dilation=(24, 9)),
    Sizes(1, 4, 6, 6, 6, padding=(5, 7), dilation=(1, 2)),
    Sizes(1, 12, 10, 5, 3, padding=(50, 60), dilation=(1, 30)),
]
OTHER_SIZES = [
    Sizes(2, 6, 66, 9, 11, kernel=(1, 1), padding=(0, 0)),
    Sizes(2, 6, 20, 9, 11, kernel=(1, 1), padding=(1, 2)),
    Sizes(2, 20, 18, 9, 11, kernel=(1, 1), stride=(2, 2), padding=(0, 0)),
    Sizes(1, 3, 64, 21, 20, kernel=(7, 7), stride=(2, 2), padding=(3, 3)),
    Sizes(1, 6, 9, 14, 15, kernel=(4, 2), stride=(1, 3), padding=(6, 1), dilation=(8, 2)),
    Sizes(1, 6, 9, 14, 15, stride=(2, 1), padding=(2, 2), dilation=(2, 2)),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("algorithm", ["auto", "torch", "direct", "winograd"])
@pytest.mark.parametrize("sizes", [*SIZES, *OTHER_SIZES], ids=str)
def test_against_float64(sizes: Sizes, algorithm: str, layout: torch.memory_format) -> None:
    x, weight, _ = tensors(sizes)
    want = expected(x, weight, **sizes.geometry())
    x = x.to(memory_format=layout)
    with conv_algorithm(algorithm):
        chosen = chosen_algorithm(x, weight, **sizes.geometry())
        if algorithm in ("torch", "direct"):
            assert chosen == algorithm
        elif algorithm == "winograd":
            assert chosen == ("torch" if sizes in OTHER_SIZES else "winograd")
        got = dilated_conv2d(x, weight, **sizes.geometry())
    assert got.shape == want.shape
    assert got.dtype == torch.float32
    assert error(got, want) < BOUNDS[chosen]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("algorithm", ["torch", "direct", "winograd"])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_epilogue(
    activation: str | None, with_residual: bool, with_bias: bool, algorithm: str, layout: torch.memory_format
) -> None:
    sizes = Sizes(2, 9, 21, 14, 19, padding=(2, 2), dilation=(2, 2))
    x, weight, bias = tensors(sizes)
    residual = tensors(Sizes(2, 21, 1, 14, 19), seed=1)[0] - 0.5
    arguments = {"bias": bias if with_bias else None, "residual": residual if with_residual else None}
    want = expected(x, weight, relu=activation == "relu", **arguments, **sizes.geometry())
    with conv_algorithm(algorithm):
        got = dilated_conv2d(x.to(memory_format=layout), weight, activation=activation, **arguments, **sizes.geometry())
    assert error(got, want) < BOUNDS[algorithm]
    assert got.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("other", ["same layout", "other layout", "every second column"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(
    ("filters", "height", "width"), [(1, 1, 1), (3, 5, 1), (17, 3, 5), (64, 32, 32), (129, 32, 33)]
)
def test_the_pass_behind_torch_has_the_bits_of_torch(
    filters: int, height: int, width: int, layout: torch.memory_format, other: str, threads: int
) -> None:
    """Sizes are one off from packs and chunks; values include NaN, infinities and zeros before the ReLU."""
    x, weight, bias = tensors(Sizes(2, 5, filters, height, width))
    x[1, 0, -1] = float("nan")
    residual = tensors(Sizes(2, filters, 1, height, width), seed=1)[0] - 0.5
    residual[0, 0, 0] = float("-inf")
    residual[1, -1] = 0
    if other == "every second column":
        residual = residual.repeat_interleave(2, dim=3)[..., ::2]
    else:
        residual = residual.to(memory_format=LAYOUTS[(LAYOUTS.index(layout) + (other == "other layout")) % 2])
    before = residual.clone()
    with torch_threads(threads), conv_algorithm("torch"):
        want = (torch.conv2d(x.to(memory_format=layout), weight, bias, padding=1) + residual).relu()
        got = dilated_conv2d(x.to(memory_format=layout), weight, bias, padding=1, residual=residual, activation="relu")
    assert torch.equal(got.nan_to_num(7), want.nan_to_num(7))
    assert torch.equal(got.isnan(), want.isnan())
    assert got.is_contiguous(memory_format=layout)
    assert torch.equal(residual, before)


@pytest.mark.parametrize("algorithm", ["auto", "shifted", "direct", "torch"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(
    ("filters", "height", "width", "rates"),
    [(21, 23, 31, (6, 12, 18, 24)), (2, 41, 7, (6, 12)), (65, 9, 10, (1, 2, 3)), (1, 1, 1, (5,)), (16, 8, 6, (7, 100))],
)
def test_aspp_sum(
    filters: int, height: int, width: int, rates: tuple[int, ...], layout: torch.memory_format, algorithm: str
) -> None:
    parts = [tensors(Sizes(2, 20, filters, height, width), seed) for seed in range(len(rates))]
    x = parts[0][0]
    weights, biases = [part[1] for part in parts], [part[2] for part in parts]
    want = sum(expected(x, w, b, padding=r, dilation=r) for w, b, r in zip(weights, biases, rates, strict=True))
    with conv_algorithm(algorithm):
        got = aspp_sum(x.to(memory_format=layout), weights, biases, rates)
        without = aspp_sum(x.to(memory_format=layout), weights, None, rates)
    assert error(got, want) < (1e-4 if algorithm == "auto" else 1e-5)
    assert error(without + sum(biases)[:, None, None], want) < 1e-4
    assert got.is_contiguous(memory_format=layout)


def test_aspp_sum_of_mixed_kernels() -> None:
    x, weight, _ = tensors(Sizes(1, 8, 5, 12, 13))
    pointwise, large = torch.randn(5, 8, 1, 1), torch.randn(5, 8, 5, 3)
    want = (
        expected(x, weight, padding=2, dilation=2)
        + expected(x, pointwise)
        + expected(x, large, padding=(6, 3), dilation=3)
    )
    with conv_algorithm("shifted"):
        assert error(aspp_sum(x, [weight, pointwise, large], None, [2, 7, 3]), want) < 1e-5


@pytest.mark.parametrize("algorithm", ["direct", "winograd", "shifted"])
def test_same_bits_for_any_threads_and_batch(algorithm: str) -> None:
    x, weight, bias = tensors(Sizes(3, 40, 70, 23, 29, padding=(2, 2), dilation=(2, 2)))

    def run(images: torch.Tensor) -> torch.Tensor:
        if algorithm == "shifted":
            return aspp_sum(images, [weight[:21], weight[21:42]], None, [3, 8])
        return dilated_conv2d(images, weight, bias, padding=2, dilation=2)

    results = []
    for threads in (1, 3):
        with torch_threads(threads), conv_algorithm(algorithm):
            results += [run(x), torch.cat([run(image[None]) for image in x])]
    assert all(torch.equal(result, results[0]) for result in results)


def test_chunks_of_tiles() -> None:
    # 36 matrices of 40 x 30 tiles and 2 x 272 columns are 23 million floats: more than one chunk of the workspace.
    sizes = Sizes(2, 250, 250, 157, 119)
    x, weight, _ = tensors(sizes)
    with conv_algorithm("winograd"):
        got = dilated_conv2d(x, weight, padding=1)
    assert error(got, torch.conv2d(x, weight, padding=1)) < 1e-4


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 3e38])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_values_that_are_not_finite_stay_where_they_are(bad: float, activation: str | None) -> None:
    sizes = Sizes(1, 16, 16, 20, 20, padding=(2, 2), dilation=(2, 2))
    x, weight, bias = tensors(sizes)
    x[0, 3, 7, 8] = bad
    want = torch.conv2d(x, weight, bias, padding=2, dilation=2)
    want = want.relu() if activation else want
    for algorithm in ("direct", "winograd"):
        with conv_algorithm(algorithm):
            got = dilated_conv2d(x, weight, bias, padding=2, dilation=2, activation=activation)
        assert torch.equal(got.isnan(), want.isnan())
        ordinary = want.isfinite() & (want.abs() < 1e30)
        assert error(got[ordinary], want[ordinary]) < 1e-4


@pytest.mark.parametrize("shape", [(0, 8, 9, 9), (0, 8, 1, 1)])
@pytest.mark.parametrize("algorithm", ["auto", "direct", "winograd", "shifted"])
def test_no_images(shape: tuple[int, ...], algorithm: str) -> None:
    x, weight = torch.empty(shape), torch.randn(5, 8, 3, 3)
    with conv_algorithm(algorithm):
        assert dilated_conv2d(x, weight, padding=1).shape == (0, 5, *shape[2:])
        assert aspp_sum(x, [weight, weight], None, [1, 2]).shape == (0, 5, *shape[2:])


def test_one_image_without_a_batch() -> None:
    sizes = Sizes(1, 4, 5, 8, 9)
    x, weight, bias = tensors(sizes)
    residual = torch.randn(5, 8, 9)
    got = dilated_conv2d(x[0], weight, bias, padding=1, residual=residual)
    assert error(got, expected(x, weight, bias, residual[None], padding=1)[0]) < 1e-5
    assert aspp_sum(x[0], [weight], None, [2]).shape == (5, 8, 9)


@pytest.mark.parametrize("algorithm", ["torch", "direct", "winograd"])
def test_any_strides(algorithm: str) -> None:
    sizes = Sizes(2, 12, 10, 11, 13)
    x, weight, bias = tensors(sizes)
    want = expected(x, weight, bias, padding=1)
    wide = torch.zeros(2, 24, 11, 26)
    wide[:, ::2, :, ::2] = x
    flipped = weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    with conv_algorithm(algorithm):
        assert error(dilated_conv2d(wide[:, ::2, :, ::2], weight, bias, padding=1), want) < 1e-4
        assert error(dilated_conv2d(x, flipped, bias, padding=1), want) < 1e-4
        assert error(dilated_conv2d(x, weight.to(memory_format=torch.channels_last), bias, padding=1), want) < 1e-4
        twice = dilated_conv2d(x[:1].expand(2, -1, -1, -1), weight, bias, padding=1)
    assert error(twice[1], want[0]) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_go_to_torch(dtype: torch.dtype) -> None:
    x, weight, bias = tensors(Sizes(1, 32, 32, 9, 9), dtype=dtype)
    got = dilated_conv2d(x, weight, bias, padding=2, dilation=2, activation="relu")
    assert got.dtype == dtype
    assert torch.equal(got, torch.conv2d(x, weight, bias, padding=2, dilation=2).relu())


def test_weights_that_change_behind_the_version_counter() -> None:
    sizes = Sizes(1, 16, 16, 12, 12)
    x, weight, _ = tensors(sizes)
    weight = torch.nn.Parameter(weight)
    for algorithm in ("winograd", "direct", "shifted"):
        with conv_algorithm(algorithm), torch.no_grad():
            for _ in range(2):
                assert error(dilated_conv2d(x, weight, padding=1), expected(x, weight, padding=1)) < 1e-4
                assert error(aspp_sum(x, [weight], None, [1]), expected(x, weight, padding=1)) < 1e-4
                weight.data[3, 5, 1, 2] += 1
                weight.detach().numpy()[7, 0, 0, 0] = 2


def test_weights_whose_memory_gets_another_shape() -> None:
    weight = torch.nn.Parameter(torch.randn(32, 16, 3, 3), requires_grad=False)
    with conv_algorithm("direct"):
        dilated_conv2d(torch.randn(1, 16, 6, 7), weight)
        for read in (lambda w: w.view(16, 32, 3, 3), lambda w: w.view(16, 3, 3, 32).permute(0, 3, 1, 2)):
            weight.data = read(weight.data)
            x = torch.randn(1, 32, 6, 7)
            assert error(dilated_conv2d(x, weight), expected(x, weight)) < 1e-5


def test_packed_weights_die_with_the_weight() -> None:
    x, weight, _ = tensors(Sizes(1, 16, 16, 12, 12))
    forget_weights()
    with conv_algorithm("winograd"):
        dilated_conv2d(x, weight, padding=1)
        dilated_conv2d(x, weight, padding=1)
    held = forget_weights()
    assert weight.nbytes * 4 <= held < weight.nbytes * 20
    with conv_algorithm("winograd"):
        dilated_conv2d(x, weight, padding=1)
    del weight
    assert forget_weights() == 0


def test_the_algorithm_is_set_permanently_or_in_a_block() -> None:
    assert deeplab_crf.get_conv_algorithm() == ("auto", ())
    with conv_algorithm(forbid=["winograd", "direct"]):
        assert deeplab_crf.get_conv_algorithm() == ("auto", ("direct", "winograd"))
        x, weight, _ = tensors(Sizes(1, 64, 64, 41, 41))
        assert chosen_algorithm(x, weight, padding=2, dilation=2) == "torch"
    assert chosen_algorithm(x, weight, padding=2, dilation=2) == "winograd"
    assert chosen_algorithm(x[0], weight, padding=2, dilation=2) == "winograd"
    deeplab_crf.set_conv_algorithm("torch")
    try:
        assert chosen_algorithm(x, weight, padding=2, dilation=2) == "torch"
    finally:
        deeplab_crf.set_conv_algorithm()


def test_sums_keep_one_set_of_weights_beside_a_first_one() -> None:
    """The next set replaces it, so that the cache does not grow; shapes and layouts are distinguished."""
    x, first = torch.randn(1, 8, 9, 9), torch.randn(5, 8, 3, 3)
    seconds = [torch.randn(5, 8, 3, 3) for _ in range(4)]
    forget_weights()
    with conv_algorithm("shifted"):
        aspp_sum(x, [first, seconds[0]], None, [1, 2])
        held = forget_weights()
        for second in [*seconds, seconds[0]]:
            want = expected(x, first, padding=1) + expected(x, second, padding=2, dilation=2)
            assert error(aspp_sum(x, [first, second], None, [1, 2]), want) < 1e-5
        assert forget_weights() == held
        flat = seconds[0].reshape(5, 8, 1, 9)  # the same numbers at the same place
        for second, padding in ((seconds[0], (2, 2)), (flat, (0, 8))):
            want = expected(x, first, padding=1) + expected(x, second, padding=padding, dilation=2)
            assert error(aspp_sum(x, [first, second], None, [1, 2]), want) < 1e-5


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("dilation", [1, 3, 6])
@pytest.mark.parametrize("algorithm", ["direct", "winograd", "auto"])
def test_weights_that_are_not_finite_spoil_what_they_spoil_in_torch(
    algorithm: str, dilation: int, number: float
) -> None:
    """This holds beyond the border too, where they are multiplied with the zeros of the padding."""
    x, weight = torch.rand(1, 3, 4, 5), torch.rand(2, 3, 3, 3)
    for _ in range(2):  # packed now, and from the cache
        weight[0, 0, 0, 0] = number
        with torch.no_grad(), conv_algorithm(algorithm):
            got = dilated_conv2d(x, weight, padding=dilation, dilation=dilation)
            summed = aspp_sum(x, [weight, weight], None, [dilation, 1])
        want = torch.conv2d(x, weight, None, 1, dilation, dilation)
        torch.testing.assert_close(got, want, equal_nan=True)
        torch.testing.assert_close(summed, want + torch.conv2d(x, weight, None, 1, 1), equal_nan=True)


@pytest.mark.parametrize("algorithm", ["direct", "winograd", "shifted"])
def test_stale_memory_in_packed_weights_is_ignored(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Panels are wider than 20 filters: a NaN in the padding must not send the call to torch."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: empty(*size, **options).fill_(math.nan))
    for slow in ("cpu.torch_conv2d", "composite.sum_branch_by_branch"):
        monkeypatch.setattr(f"deeplab_crf.ops.conv.{slow}", lambda *_: pytest.fail("torch computed it"))
    x, weight, _ = tensors(Sizes(1, 20, 19, 9, 10))
    with torch.no_grad(), conv_algorithm(algorithm):
        summed = algorithm == "shifted"
        got = aspp_sum(x, [weight], None, [1]) if summed else dilated_conv2d(x, weight, padding=1)
    assert error(got, expected(x, weight, padding=1)) < 1e-4
