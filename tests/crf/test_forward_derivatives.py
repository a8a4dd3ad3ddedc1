"""torch.func and forward derivatives over the CRF: the right value, or an error that says what to use; never a tangent of zero."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jacrev, jvp, vmap

from deeplab_crf import DenseCRF, DenseCRFLoss, bilateral_filter, dilated_conv2d, permutohedral_filter
from deeplab_crf.ops import library
from deeplab_crf.ops.conv.algorithms import Policy
from deeplab_crf.ops.lattice.operators import build_lattice

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own decompositions for forward mode


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LOGITS, IMAGE = normal(1, 3, 5, 6), 100 + 20 * normal(1, 3, 5, 6, seed=1)
VALUES = normal(1, 30, 3)
LATTICE = build_lattice(normal(1, 30, 2, seed=2))
ONE, NONE = torch.ones((), dtype=torch.float64), torch.empty(0, dtype=torch.float64)
OPS = torch.ops.deeplab_crf

FUNCTIONS: dict[str, tuple[Callable[[Tensor], object], Tensor]] = {
    "layer, logits": (lambda x: DenseCRF(3)(x, IMAGE), LOGITS),
    "layer, image": (lambda x: DenseCRF(3)(LOGITS, x), IMAGE),
    "loss": (lambda x: DenseCRFLoss()(x.softmax(1), IMAGE), LOGITS),
    "loss, image": (lambda x: DenseCRFLoss()(LOGITS.softmax(1), x), IMAGE),
    "bilateral filter": (lambda x: bilateral_filter(x, IMAGE, 5, 20), LOGITS),
    "bilateral filter, guide": (lambda x: bilateral_filter(LOGITS, x, 5, 20), IMAGE),
    "permutohedral filter": (lambda x: permutohedral_filter(x, VALUES), VALUES),
}
TERMS = ([LATTICE.rows], [LATTICE.weights], [LATTICE.structure], [NONE], [NONE])
OPERATORS: dict[str, tuple[Callable[[Tensor], object], Tensor]] = {
    "pack_unary": (OPS.pack_unary, VALUES),
    "unpack_scores": (OPS.unpack_scores, VALUES),
    "scaled_features": (lambda x: OPS.scaled_features(x, None, None, torch.ones(30, dtype=torch.float64)), VALUES),
    "lattice_build": (OPS.lattice_build, VALUES),
    "lattice_build_backward": (lambda x: OPS.lattice_build_backward(x, VALUES[..., :2]), VALUES),
    "lattice_filter": (lambda x: OPS.lattice_filter(x, *LATTICE), VALUES),
    "lattice_filter_weights_backward": (
        lambda x: OPS.lattice_filter_weights_backward(x, VALUES, *LATTICE, False),
        VALUES,
    ),
    "lattice_norm": (lambda x: OPS.lattice_norm(LATTICE.rows, x, LATTICE.structure, None, True), LATTICE.weights),
    "mean_field": (  # the tangent is in a list
        lambda x: OPS.mean_field(VALUES, *TERMS, [x], None, None, 1, 0.0, 0.0, True, "none"),
        ONE,
    ),
    "mean_field_backward": (
        lambda x: OPS.mean_field_backward(
            x, VALUES, VALUES[None], *TERMS, [ONE], None, 1, 0.0, False, False, False, [False] * 4
        ),
        VALUES,
    ),
    "dilated_conv2d": (
        lambda x: OPS.dilated_conv2d(x, x.new_ones(2, 3, 1, 1), None, None, [1, 1], [0, 0], [1, 1], False, Policy.AUTO),
        LOGITS,
    ),
    "aspp_sum": (lambda x: OPS.aspp_sum(x, [x.new_ones(2, 3, 1, 1)], [], [1], Policy.AUTO), LOGITS),
}


def forward_derivatives(function: Callable[[Tensor], object], at: Tensor) -> list[Callable[[], object]]:
    """Two ways to ask for a forward derivative."""

    def dual() -> object:
        with forward_ad.dual_level():
            return function(forward_ad.make_dual(at, torch.ones_like(at)))

    return [dual, lambda: jvp(function, (at,), (torch.ones_like(at),))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_forward_derivatives_are_refused(name: str) -> None:
    for call in forward_derivatives(*FUNCTIONS[name]):
        with pytest.raises(
            NotImplementedError, match=r"has no forward derivative; got a tensor with a tangent .*exact"
        ):
            call()


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_refuses_a_tangent(name: str) -> None:
    assert set(OPERATORS) == set(library.OPERATORS)
    function, at = OPERATORS[name]
    function(at)
    for call in forward_derivatives(function, at):
        with pytest.raises(NotImplementedError, match=f"^{name} has no forward derivative"):
            call()


def central_difference(function: Callable[[Tensor], Tensor], at: Tensor, direction: Tensor) -> Tensor:
    step = 1e-6
    return (function(at + step * direction) - function(at - step * direction)) / (2 * step)


def test_the_exact_method_has_forward_derivatives_in_its_logits() -> None:
    layer = DenseCRF(3, method="exact", iterations=3)
    direction = normal(*LOGITS.shape, seed=3)

    def refine(x: Tensor) -> Tensor:
        return layer(x, IMAGE)

    want = central_difference(refine, LOGITS, direction)
    try:
        tangent = jvp(refine, (LOGITS,), (direction,))[1]
    except NotImplementedError:
        if torch.__version__ >= (2, 13):
            raise
        pytest.skip("torch.utils.checkpoint of this torch has no forward derivative: an error, no wrong tangent")
    torch.testing.assert_close(tangent, want, rtol=1e-5, atol=1e-6)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(refine(forward_ad.make_dual(LOGITS, direction))).tangent
    torch.testing.assert_close(tangent, want, rtol=1e-5, atol=1e-6)
    for call in forward_derivatives(lambda x: layer(LOGITS, x), IMAGE):
        with pytest.raises(NotImplementedError):
            call()


@pytest.mark.parametrize("transform", [grad, jacrev])
def test_reverse_mode_of_torch_func_is_refused(transform: Callable[..., Callable[[Tensor], Tensor]]) -> None:
    with pytest.raises(NotImplementedError, match=r"has no derivative within torch.func .* Use torch.autograd.grad"):
        transform(lambda x: DenseCRF(3)(x, IMAGE).sum())(LOGITS)


def test_vmap_gives_the_values_one_by_one_or_an_error() -> None:
    many = normal(4, 1, 3, 5, 6, seed=4)
    got = vmap(lambda x: bilateral_filter(x, IMAGE, 5, 20))(many)
    want = torch.stack([bilateral_filter(x, IMAGE, 5, 20) for x in many])
    torch.testing.assert_close(got, want)
    with pytest.raises(RuntimeError, match=r"vmap|Batching rule"):
        vmap(lambda x: DenseCRF(3)(x, IMAGE))(many)


def test_convolutions_keep_their_forward_derivatives() -> None:
    weight = normal(2, 3, 3, 3)
    direction = normal(*LOGITS.shape, seed=5)
    got = jvp(lambda x: dilated_conv2d(x, weight), (LOGITS,), (direction,))[1]
    torch.testing.assert_close(got, torch.conv2d(direction, weight))
