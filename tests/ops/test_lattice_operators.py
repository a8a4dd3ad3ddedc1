"""torch.ops.deeplab_crf: lattices. Values are those of the NumPy door, derivatives those of the operator itself."""

from __future__ import annotations

import re
from typing import Any

import crf_samples
import pytest
import samples
import torch
from crf_samples import here
from devices import Device, opcheck

from deeplab_crf import PermutohedralLattice
from deeplab_crf.core.pairwise import NORMALIZATIONS
from deeplab_crf.ops.lattice.features import _scale_by_torch, scaled_features
from deeplab_crf.ops.lattice.operators import build_lattice, normalisation

pytestmark = pytest.mark.usefixtures("device")

OPS = torch.ops.deeplab_crf
DTYPES = (torch.float32, torch.float64)


def _features(batch: int = 2, points: int = 40, dims: int = 3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    images = [here(torch.from_numpy(samples.features(points, dims, seed, "float64"))) for seed in range(batch)]
    return torch.stack(images).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 5])
def test_filter_agrees_with_the_numpy_door(device: Device, dims: int, transpose: bool, dtype: torch.dtype) -> None:
    """Bit for bit on the CPU."""
    features, values = _features(dims=dims, dtype=dtype), crf_samples.normal(2, 40, 7, dtype=dtype)
    got = build_lattice(features).filter(values, transpose=transpose)
    for image in range(2):
        alone = PermutohedralLattice(features[image].cpu().numpy()).filter(
            values[image].cpu().numpy(), transpose=transpose
        )
        assert samples.scaled_error(got[image].cpu(), alone) <= samples.TOLERANCE[alone.dtype] * (
            not device.is_reference
        )


@pytest.mark.parametrize("mode", NORMALIZATIONS)
def test_norms_agree_with_the_numpy_door(device: Device, mode: str) -> None:
    """Bit for bit on the CPU."""
    features = _features(batch=1, dtype=torch.float32)
    want = PermutohedralLattice(features[0].cpu().numpy()).norms(mode)
    for got, numpy_norm in zip(normalisation(build_lattice(features), mode), want, strict=True):
        assert (got is None) == (numpy_norm is None)
        assert got is None or samples.scaled_error(got[0].cpu(), numpy_norm) <= 1e-5 * (not device.is_reference)


def test_any_strides() -> None:
    features, values = _features(), crf_samples.normal(2, 40, 4)
    want = build_lattice(features).filter(values)
    strided_features = features.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    strided_values = torch.stack([values, values], dim=-1)[..., 0]
    assert torch.equal(build_lattice(strided_features).filter(strided_values), want)
    expanded = build_lattice(features[:1].expand(3, -1, -1))
    assert torch.equal(expanded.filter(values[:1].expand(3, -1, -1))[2], want[0])


@pytest.mark.parametrize("channels", [0, 1, 25])
def test_channels(channels: int) -> None:
    values = crf_samples.normal(2, 40, channels)
    lattice = build_lattice(_features())
    want = [lattice.filter(values[..., c : c + 1]) for c in range(channels)]
    got = lattice.filter(values)
    assert got.shape == (2, 40, channels)
    assert channels == 0 or samples.scaled_error(got, torch.cat(want, dim=-1)) < 1e-12


def test_transpose_is_the_adjoint() -> None:
    lattice, a, b = build_lattice(_features()), crf_samples.normal(2, 40, 3), crf_samples.normal(2, 40, 3, seed=1)
    assert (lattice.filter(a) * b).sum().item() == pytest.approx(
        (lattice.filter(b, transpose=True) * a).sum().item(), rel=1e-12
    )


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 5])
def test_filter_gradients(device: Device, dims: int, transpose: bool) -> None:
    features = crf_samples.generic_features(2, 12, dims).requires_grad_()
    values = crf_samples.normal(2, 12, 3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f, v: build_lattice(f).filter(v, transpose=transpose),
        (features, values),
        fast_mode=not device.is_reference,
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mode", NORMALIZATIONS)
def test_gradients_through_the_normalisation(device: Device, mode: str, masked: bool) -> None:
    features = crf_samples.generic_features(2, 10, 2).requires_grad_()
    values = crf_samples.normal(2, 10, 2).requires_grad_()
    mask = (torch.arange(20).reshape(2, 10) % 4 > 0).double() if masked else None

    def normalised(f: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        lattice = build_lattice(f)
        norm_in, norm_out = normalisation(lattice, mode, mask)
        filtered = lattice.filter(v if norm_in is None else v * norm_in[..., None])
        return filtered if norm_out is None else filtered * norm_out[..., None]

    assert torch.autograd.gradcheck(normalised, (features, values), fast_mode=not device.is_reference)


@pytest.mark.parametrize("transpose", [False, True])
def test_second_derivative_in_values(transpose: bool) -> None:
    lattice, values = build_lattice(_features(points=8)), crf_samples.normal(2, 8, 2).requires_grad_()
    square = lambda v: lattice.filter(v, transpose=transpose) ** 2  # noqa: E731
    assert torch.autograd.gradgradcheck(square, (values,))


def test_other_second_derivatives_are_refused() -> None:
    features = _features(points=8).requires_grad_()
    loss = (build_lattice(features).filter(crf_samples.normal(2, 8, 2)) ** 2).sum()
    (gradient,) = torch.autograd.grad(loss, features, create_graph=True)
    with pytest.raises(RuntimeError, match=r"lattice_build has no second derivative.*create_graph=True"):
        gradient.sum().backward()


def test_no_gradients_are_computed_where_none_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The normalisation's graph is built for features that require a gradient, and for no others."""
    for needed in (False, True):
        lattice = build_lattice(_features().requires_grad_(needed))
        norm, _ = normalisation(lattice, "symmetric")
        assert norm is not None
        assert norm.requires_grad == needed


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    features = crf_samples.generic_features(2, 9, 2, dtype).requires_grad_()
    values = crf_samples.normal(2, 9, 3, dtype=dtype).requires_grad_()
    logits = crf_samples.normal(2, 3, 9, dtype=dtype).requires_grad_()
    rows, weights, structure = (tensor.detach() for tensor in build_lattice(features))
    weights.requires_grad_()
    lattice = (rows, weights, structure)
    opcheck(OPS.pack_unary.default, (logits,))
    opcheck(OPS.unpack_scores.default, (values,))
    opcheck(OPS.lattice_build.default, (features.detach(),))
    # Its AOT test adds up all results, which an integer first does not allow: tests/crf/test_compilation.py compiles gradients.
    others = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(OPS.lattice_build.default, (features,), test_utils=others)
    for mask, root in ((None, True), (torch.ones(2, 9, dtype=dtype), False)):
        opcheck(OPS.lattice_norm.default, (*lattice, mask, root))
    opcheck(OPS.lattice_build_backward.default, (weights.detach(), features.detach()))
    opcheck(OPS.lattice_filter.default, (values, *lattice))
    opcheck(OPS.lattice_filter.default, (values, *lattice, True))
    arguments = (values.detach(), values.detach(), rows, weights.detach(), structure, False)
    opcheck(OPS.lattice_filter_weights_backward.default, arguments)


def test_autocast_computes_in_single_precision(device: Device) -> None:
    features, values = _features(dtype=torch.float32), crf_samples.normal(2, 40, 3, dtype=torch.float32)
    half = values.bfloat16().requires_grad_()
    with torch.autocast(device.where.type, dtype=torch.bfloat16):
        got = build_lattice(features.bfloat16()).filter(half)
    want = build_lattice(features.bfloat16().float()).filter(half.float())
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    got.sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("order", ["CL", "LC"])
def test_pack_unary(order: str) -> None:
    logits = crf_samples.normal(3, 5, 14)
    given = logits if order == "CL" else logits.transpose(1, 2).contiguous().transpose(1, 2)
    kept = given.clone()
    packed = OPS.pack_unary(given)
    assert packed.is_contiguous()
    assert torch.equal(packed, -logits.transpose(1, 2))
    assert torch.equal(given, kept)
    given.requires_grad_()
    assert torch.autograd.gradcheck(OPS.pack_unary, (given,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ["CL", "LC"])
@pytest.mark.parametrize("labels", [1, 2, 5, 31, 32, 33, 70])
def test_pack_unary_caps_infinity(labels: int, order: str, dtype: torch.dtype) -> None:
    logits = crf_samples.normal(3, labels, 67, dtype=dtype)
    excluded = crf_samples.normal(3, labels, 67, seed=1) < -0.4
    excluded[:, 0] &= ~excluded.all(dim=1)
    logits = logits.masked_fill(excluded, -torch.inf)
    given = logits if order == "CL" else logits.transpose(1, 2).contiguous().transpose(1, 2)
    packed = OPS.pack_unary(given)
    assert torch.equal(packed, -logits.clamp(min=-torch.finfo(torch.float32).max).transpose(1, 2))
    assert torch.equal(OPS.pack_unary(given, False), packed)
    given[1, :, 37] = -torch.inf
    message = (
        "logits must be finite for at least one label of each pixel; got -inf for all labels of point 37 of image 1"
    )
    with pytest.raises(ValueError, match=message):
        OPS.pack_unary(given)
    given[1, 0, 37] = torch.inf
    with pytest.raises(ValueError, match="logits must be finite; got inf for label 0 of point 37 of image 1"):
        OPS.pack_unary(given)


def test_unchecked_points_without_labels_are_nan_on_cuda(device: Device) -> None:
    logits = crf_samples.normal(2, 40, 9)
    logits[1, :, 4] = -torch.inf
    packed = OPS.pack_unary(logits, False)
    wrong = torch.zeros(2, 9, dtype=torch.bool, device=packed.device)
    wrong[1, 4] = True
    assert torch.equal((packed.isinf() if device.name == "cpu" else packed.isnan()).all(-1), wrong)
    assert torch.isfinite(packed[~wrong]).all()


@pytest.mark.parametrize("batch", [1, 2])
def test_scaled_features(batch: int) -> None:
    positions, values = crf_samples.normal(batch, 2, 9), crf_samples.normal(2, 3, 9, seed=1)
    widths = crf_samples.normal(5, seed=2).abs() + 0.5
    pixels = crf_samples.permutation(9)
    want = torch.cat([positions.expand(2, -1, -1), values[..., pixels]], 1) / widths[:, None]
    assert torch.equal(scaled_features(positions, values, pixels, widths), want)
    assert torch.equal(scaled_features(positions, None, None, widths[:2])[0], want[0, :2])
    assert torch.equal(_scale_by_torch(positions, values, pixels, widths), want), "what other devices run"
    bytes_ = (values * 50).byte()
    assert torch.equal(
        scaled_features(positions, bytes_, pixels, widths), scaled_features(positions, bytes_.double(), pixels, widths)
    )
    leaves = tuple(leaf.requires_grad_() for leaf in (positions, values, widths))
    for index in (pixels, None):
        assert torch.autograd.gradcheck(lambda p, v, w, index=index: scaled_features(p, v, index, w), leaves)
        opcheck(OPS.scaled_features.default, (positions, values, index, widths))
    opcheck(OPS.scaled_features.default, (positions, None, None, widths[:2].detach()))


def _lattice() -> tuple[Any, ...]:
    return tuple(build_lattice(_features()))


def _nan_logits() -> torch.Tensor:
    logits = crf_samples.normal(2, 3, 5)
    logits[1, 2, 4] = float("nan")
    return logits


ERRORS = [
    (
        lambda: build_lattice(_features()[0]),
        ValueError,
        "features must have shape (B, N, d), none of them 0; got (40, 3)",
    ),
    (
        lambda: build_lattice(_features()[:, :0]),
        ValueError,
        "features must have shape (B, N, d), none of them 0; got (2, 0, 3)",
    ),
    (
        lambda: build_lattice(torch.zeros(1, 2, 33)),
        ValueError,
        "at most 32 dimensions (B, N, d); got d = 33. Project them",
    ),
    (
        lambda: build_lattice(_features().half()),
        TypeError,
        "features must be float32 or float64; got torch.float16. Convert",
    ),
    (lambda: build_lattice(_features() / 0), ValueError, "features must be finite"),
    (lambda: build_lattice(_features() * 1e20), ValueError, "below 2^30"),
    (
        lambda: OPS.lattice_filter(torch.zeros(2, 40), *_lattice()),
        ValueError,
        "values must have shape (B, N, C); got (2, 40)",
    ),
    (
        lambda: OPS.lattice_filter(crf_samples.normal(2, 41, 1), *_lattice()),
        ValueError,
        "values must have the lattice's 2 images of 40 points; got 2 images of 41",
    ),
    (
        lambda: OPS.lattice_filter(torch.zeros(2, 40, 1), *_lattice()),
        TypeError,
        "values must have the dtype of the lattice, torch.float64; got torch.float32",
    ),
    (
        lambda: OPS.lattice_filter(crf_samples.normal(2, 40, 1), *_lattice()[:2], torch.zeros(99, dtype=torch.int32)),
        ValueError,
        "structure",
    ),
    (
        lambda: OPS.lattice_filter(crf_samples.normal(2, 40, 1), _lattice()[0].long(), *_lattice()[1:]),
        TypeError,
        "rows must be contiguous int32 as lattice_build returns it; got torch.int64",
    ),
    (
        lambda: OPS.lattice_build_backward(crf_samples.normal(2, 40, 3), _features()),
        ValueError,
        "grad_weights must have shape (2, 40, 4); got (2, 40, 3)",
    ),
    (
        lambda: OPS.lattice_filter_weights_backward(
            crf_samples.normal(2, 40, 2), crf_samples.normal(2, 40, 3), *_lattice(), False
        ),
        ValueError,
        "grad must have shape (2, 40, 3); got (2, 40, 2)",
    ),
    (
        lambda: OPS.pack_unary(_nan_logits()),
        ValueError,
        "logits must be finite; got nan for label 2 of point 4 of image 1",
    ),
    (lambda: OPS.pack_unary(torch.zeros(3, 4)), ValueError, "logits must have shape (B, L, N); got (3, 4)"),
    (lambda: OPS.unpack_scores(torch.zeros(3, 4)), ValueError, "scores must have shape (B, N, L); got (3, 4)"),
    (
        lambda: OPS.lattice_norm(*_lattice(), crf_samples.normal(2, 41), True),
        ValueError,
        "mask must have shape (2, 40)",
    ),
    (
        lambda: scaled_features(torch.zeros(3, 2, 4), torch.zeros(2, 3, 4), None, torch.ones(5)),
        ValueError,
        "positions must have a batch of 1 or 2 as values do; got 3",
    ),
    (
        lambda: scaled_features(torch.zeros(1, 2, 4), torch.zeros(2, 3, 5), None, torch.ones(5)),
        ValueError,
        "values must have shape (2, 3, 4); got (2, 3, 5)",
    ),
    (
        lambda: scaled_features(torch.zeros(1, 2, 4), torch.zeros(2, 3, 4).half(), None, torch.ones(5)),
        TypeError,
        "values must be uint8 or torch.float32; got torch.float16. Convert them with .to()",
    ),
    (
        lambda: scaled_features(torch.zeros(1, 2, 4), None, None, torch.ones(3)),
        ValueError,
        "widths must have shape (2,); got (3,)",
    ),
    (
        lambda: scaled_features(torch.zeros(1, 2, 4), None, None, torch.ones(2).double()),
        TypeError,
        "widths must have the dtype of positions, torch.float32; got torch.float64",
    ),
    (
        lambda: normalisation(build_lattice(_features()), "both"),
        ValueError,
        "normalization must be one of none, before",
    ),
    (
        lambda: OPS.lattice_filter(crf_samples.normal(2, 40, 1).to_sparse(), *_lattice()),
        NotImplementedError,
        "lattice_filter has kernels for strided tensors on the CPU",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS, ids=[message[:40] for _, _, message in ERRORS])
def test_errors(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()


# CUDA does not read its memory to check what belongs together.
ERRORS_OF_THE_CPU = [
    (
        lambda: OPS.lattice_filter(crf_samples.normal(2, 40, 1), *_lattice()[:2], build_lattice(_features(3))[2]),
        ValueError,
        "rows and structure must come from one lattice_build",
    ),
    (
        lambda: OPS.lattice_filter(crf_samples.normal(2, 40, 1), _lattice()[0] + 1000, *_lattice()[1:]),
        ValueError,
        "rows must be those that lattice_build returned with the structure, from 0 to",
    ),
    (
        lambda: OPS.lattice_filter(crf_samples.normal(2, 40, 1), -_lattice()[0], *_lattice()[1:]),
        ValueError,
        "got -",
    ),
]


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("call", "kind", "message"), ERRORS_OF_THE_CPU, ids=[message[:40] for _, _, message in ERRORS_OF_THE_CPU]
)
def test_foreign_rows_are_refused(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()


def test_number_of_vertices_and_their_bound() -> None:
    features = _features()
    lattice = build_lattice(features)
    vertices = lattice.num_vertices()
    assert len(vertices) == 2
    assert vertices == [build_lattice(features[image : image + 1]).num_vertices()[0] for image in range(2)]
    bounded = build_lattice(features, sum(vertices))
    bounded.check()
    values = crf_samples.normal(2, 40, 3)
    assert torch.equal(bounded.filter(values), lattice.filter(values))
    assert bounded.num_vertices() == vertices
    for wrong in (0, -1):
        with pytest.raises(
            ValueError, match=f"max_vertices must be a whole number from 1 to 320, or None; got {wrong}"
        ):
            build_lattice(features, wrong)


def test_too_small_a_bound_is_told() -> None:
    """At once where the memory is at hand, by NaN and by check() where it is not."""
    features = _features()
    vertices = sum(build_lattice(features).num_vertices())

    def build_and_look() -> None:
        lattice = build_lattice(features, vertices - 1)
        assert torch.isnan(lattice.filter(crf_samples.normal(2, 40, 3))).any()
        lattice.check()

    told = f"max_vertices must not be less than .*got {vertices - 1}, and there are {vertices}"
    with pytest.raises(ValueError, match=told):
        build_and_look()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_values(dtype: torch.dtype) -> None:
    """Sums are taken in the lattice's single precision, so only input and output are rounded."""
    lattice = build_lattice(_features(dtype=torch.float32))
    values = crf_samples.normal(2, 40, 7, dtype=torch.float32).to(dtype).requires_grad_()
    got = lattice.filter(values)
    assert got.dtype == dtype
    want = lattice.filter(values.detach().float())
    assert torch.allclose(got.float(), want, rtol=float(torch.finfo(dtype).eps))
    features = _features(dtype=torch.float32).requires_grad_()
    build_lattice(features).filter(values).backward(torch.ones_like(got))
    assert values.grad is not None
    assert values.grad.dtype == dtype
    twin = _features(dtype=torch.float32).requires_grad_()
    build_lattice(twin).filter(values.detach().float()).backward(torch.ones_like(want))
    assert features.grad is not None
    assert torch.equal(features.grad, twin.grad)
    with pytest.raises(TypeError, match=r"values must be float32 or float64; got torch\.float16"):
        build_lattice(_features()).filter(values.half())
