"""torch.ops.deeplab_crf: mean field, judged by torch operations on one lattice filter after the other and autograd through them."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import crf_samples
import pytest
import samples
import torch
from crf_samples import unrolled_mean_field
from devices import Device, opcheck

from deeplab_crf.core.pairwise import NORMALIZATIONS
from deeplab_crf.ops.lattice.operators import Lattice, build_lattice, normalisation
from deeplab_crf.ops.mean_field.forward import GRADIENTS, PairwiseTerm, Updates, mean_field

pytestmark = pytest.mark.usefixtures("device")

OPS = torch.ops.deeplab_crf
B, N, L = 2, 14, 3


def _compatibility(kind: str, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    shape = {"potts": (), "diagonal": (L,), "matrix": (L, L)}[kind]
    return 0.7 * crf_samples.normal(*shape, seed=seed, dtype=dtype)


def _terms(
    kinds: tuple[str, ...] = ("potts", "matrix"), mode: str = "symmetric", dtype: torch.dtype = torch.float64
) -> list[PairwiseTerm]:
    terms = []
    for m, kind in enumerate(kinds):
        lattice = build_lattice(crf_samples.generic_features(B, N, 2 + m, dtype, seed=10 * m))
        terms.append(PairwiseTerm(lattice, *normalisation(lattice, mode), _compatibility(kind, m, dtype)))
    return terms


def _differentiable(terms: list[PairwiseTerm]) -> list[torch.Tensor]:
    """Everything in ``terms`` that has a gradient, as leaves that ask for it."""
    leaves = []
    for term in terms:
        tensors = (term.lattice.weights, term.norm_in, term.norm_out, term.compatibility)
        leaves += [tensor.detach().clone().requires_grad_() for tensor in tensors if tensor is not None]
    return leaves


def _with(terms: list[PairwiseTerm], leaves: tuple[torch.Tensor, ...]) -> list[PairwiseTerm]:
    """The terms with ``leaves`` in place of what `_differentiable` took."""
    rest, result = iter(leaves), []
    for (rows, _, structure), norm_in, norm_out, _ in terms:
        lattice = Lattice(rows, next(rest), structure)
        norm_in = None if norm_in is None else next(rest)
        norm_out = None if norm_out is None else next(rest)
        result.append(PairwiseTerm(lattice, norm_in, norm_out, next(rest)))
    return result


UNARY = crf_samples.normal(B, N, L, seed=3)
ORDER = crf_samples.permutation(N).int()


@pytest.mark.parametrize("iterations", [0, 1, 5])
@pytest.mark.parametrize("mode", NORMALIZATIONS)
@pytest.mark.parametrize("kinds", [("potts",), ("diagonal",), ("potts", "matrix"), ("matrix", "diagonal", "potts"), ()])
def test_forward(kinds: tuple[str, ...], mode: str, iterations: int) -> None:
    terms = _terms(kinds, mode)
    want = unrolled_mean_field(UNARY, terms, iterations, ORDER)
    log_q = mean_field(UNARY, terms, iterations, order=ORDER)
    assert log_q.is_contiguous()
    assert samples.scaled_error(log_q, want) < 1e-12
    q = mean_field(UNARY, terms, iterations, order=ORDER, log_output=False)
    assert samples.scaled_error(q, want.exp()) < 1e-12


def test_single_precision() -> None:
    terms = _terms(dtype=torch.float32)
    unary = UNARY.float()
    assert samples.scaled_error(mean_field(unary, terms, 5), unrolled_mean_field(unary, terms, 5)) < 1e-5


def test_log_output_does_not_underflow() -> None:
    unary = (UNARY * 0).float()
    unary[..., 1] = 500.0
    log_q = mean_field(unary, _terms(("potts",), dtype=torch.float32), 3)
    assert torch.isfinite(log_q).all()
    assert (log_q[..., 1] < -400).all()


@pytest.mark.parametrize("gradients", ["store", "recompute"])
@pytest.mark.parametrize("log_output", [True, False])
@pytest.mark.parametrize("mode", NORMALIZATIONS)
@pytest.mark.parametrize("kinds", [("potts",), ("diagonal",), ("matrix",), ("potts", "matrix")])
def test_gradients(kinds: tuple[str, ...], mode: str, log_output: bool, gradients: str) -> None:
    """Of every argument, equal to those of autograd through the single filters."""
    terms = _terms(kinds, mode)
    cotangent = crf_samples.normal(B, N, L, seed=5)
    results = []
    for run in (mean_field, _unrolled):
        leaves = [UNARY.clone().requires_grad_(), *_differentiable(terms)]
        out = run(
            leaves[0], _with(terms, tuple(leaves[1:])), 5, order=ORDER, log_output=log_output, gradients=gradients
        )
        results.append(torch.autograd.grad(out, leaves, cotangent))
    for got, want in zip(*results, strict=True):
        assert samples.scaled_error(got, want) < 1e-11


def _unrolled(
    unary: torch.Tensor,
    terms: list[PairwiseTerm],
    iterations: int,
    *,
    order: torch.Tensor,
    log_output: bool = True,
    gradients: str = "store",
) -> torch.Tensor:
    log_q = unrolled_mean_field(unary, terms, iterations, order)
    return log_q if log_output else log_q.exp()


@pytest.mark.parametrize("gradients", ["store", "recompute"])
@pytest.mark.parametrize("iterations", [0, 1, 4])
def test_gradcheck(iterations: int, gradients: str) -> None:
    terms = _terms(("diagonal", "matrix"))
    leaves = (UNARY.clone().requires_grad_(), *_differentiable(terms))

    def run(unary: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return mean_field(unary, _with(terms, rest), iterations, order=ORDER, gradients=gradients)

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("gradients", ["store", "recompute"])
def test_gradient_of_a_start(gradients: str) -> None:
    terms = _terms()
    start = torch.softmax(crf_samples.normal(B, N, L, seed=8), -1).requires_grad_()
    unary = UNARY.clone().requires_grad_()

    def run(unary: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        return mean_field(unary, terms, 3, order=ORDER, start=start, gradients=gradients)

    want = unrolled_mean_field(unary, terms, 3, ORDER, start)
    assert samples.scaled_error(run(unary, start).detach(), want.detach()) < 1e-12
    assert torch.autograd.gradcheck(run, (unary, start), fast_mode=True)


def _operator_arguments(terms: list[PairwiseTerm]) -> list[list[torch.Tensor]]:
    lattices, norms_in, norms_out, compatibilities = zip(*terms, strict=True)
    return [list(each) for each in (*zip(*lattices, strict=True), norms_in, norms_out, compatibilities)]


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_implicit_gradients_are_those_of_the_fixed_point(damping: float) -> None:
    """After many iterations, where unrolling them all gives the same."""
    terms = _terms()
    results = []
    for gradients, iterations in (("implicit", 200), ("store", 200)):
        leaves = [UNARY.clone().requires_grad_(), *_differentiable(terms)]
        options = {"updates": Updates(damping, 1e-14)} if gradients == "implicit" else {}
        out = mean_field(
            leaves[0], _with(terms, tuple(leaves[1:])), iterations, order=ORDER, gradients=gradients, **options
        )
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for got, want in zip(*results, strict=True):
        assert samples.scaled_error(got.detach(), want.detach()) < 1e-9


def test_images_have_the_bits_of_their_runs_alone() -> None:
    terms = _terms(dtype=torch.float32)
    leaves = [UNARY.float().requires_grad_(), *_differentiable(terms)]
    together = mean_field(leaves[0], _with(terms, tuple(leaves[1:])), 4)
    gradients = torch.autograd.grad(together.square().sum(), leaves)
    for image in range(B):
        alone_terms = []
        for m, (_, norm_in, norm_out, compatibility) in enumerate(terms):
            features = crf_samples.generic_features(B, N, 2 + m, torch.float32, seed=10 * m)[image : image + 1]
            cut = slice(image, image + 1)
            alone_terms.append(PairwiseTerm(build_lattice(features), norm_in[cut], norm_out[cut], compatibility))
        alone_leaves = [UNARY.float()[image : image + 1].requires_grad_(), *_differentiable(alone_terms)]
        alone = mean_field(alone_leaves[0], _with(alone_terms, tuple(alone_leaves[1:])), 4)
        assert torch.equal(alone[0], together[image])
        alone_gradients = torch.autograd.grad(alone.square().sum(), alone_leaves)
        for got, want in zip(alone_gradients, gradients, strict=True):
            if got.shape != want.shape:  # compatibilities are shared by the images
                assert torch.equal(got[0], want[image])


@pytest.mark.cpu_only
@pytest.mark.parametrize("threads", [1, 3])
def test_thread_counts_do_not_show(threads: int) -> None:
    terms = _terms(dtype=torch.float32)

    def run() -> list[torch.Tensor]:
        leaves = [UNARY.float().requires_grad_(), *_differentiable(terms)]
        out = mean_field(leaves[0], _with(terms, tuple(leaves[1:])), 4)
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    before, want = torch.get_num_threads(), run()
    try:
        torch.set_num_threads(threads)
        assert all(torch.equal(got, expected) for got, expected in zip(run(), want, strict=True))
    finally:
        torch.set_num_threads(before)


def test_memory_of_the_modes() -> None:
    """What the graph keeps of the size of Q: every iteration, every third of nine, and the result."""
    terms, kept = _terms(("potts", "potts"))[1:], {}
    for gradients in GRADIENTS:
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            mean_field(UNARY.clone().requires_grad_(), terms, 9, gradients=gradients)
        kept[gradients] = sum(size for size in sizes.values() if size % (B * N * L) == 0) // (B * N * L)
    assert kept == {"store": 10, "recompute": 3, "implicit": 1}


def test_no_gradients_no_trace() -> None:
    unary, tensors = UNARY.clone().requires_grad_(), _operator_arguments(_terms())
    with torch.no_grad():
        _, trace = OPS.mean_field(unary, *tensors, None, None, 2, 0.0, 0.0, True, "none")
    assert trace.numel() == 0
    assert not mean_field(UNARY, _terms(), 2).requires_grad


def test_second_derivatives_are_refused() -> None:
    unary = UNARY.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(mean_field(unary, _terms(), 2).square().sum(), unary, create_graph=True)
    with pytest.raises(RuntimeError, match=r"mean_field has no second derivative.*create_graph=True"):
        gradient.sum().backward()


@pytest.mark.parametrize("gradients", ["none", *GRADIENTS])
def test_opcheck(gradients: str) -> None:
    terms = _terms()
    tensors = _operator_arguments(terms)
    leaves = UNARY.clone()
    if gradients != "none":
        leaves.requires_grad_()
        for tensor in (*tensors[1], *tensors[3], *tensors[4], *tensors[5]):
            tensor.requires_grad_()
    arguments = (leaves, *tensors, ORDER, None, 3, 0.0, 0.0, True, gradients)
    opcheck(OPS.mean_field.default, arguments)


def test_opcheck_of_the_gradient() -> None:
    tensors = _operator_arguments(_terms())
    out, trace = OPS.mean_field(UNARY, *tensors, ORDER, None, 3, 0.0, 0.0, True, "store")
    needed = [True, False, True, False, False, True, False, True]
    arguments = (out, out, trace, *tensors, ORDER, 3, 0.0, True, False, False, needed)
    opcheck(OPS.mean_field_backward.default, arguments)


def test_autocast_computes_in_single_precision(device: Device) -> None:
    terms = _terms(dtype=torch.float32)
    half = UNARY.bfloat16()
    with torch.autocast(device.where.type, dtype=torch.bfloat16):
        got = mean_field(half, terms, 3)
    assert got.dtype == torch.float32
    assert torch.equal(got, mean_field(half.float(), terms, 3))


def _call(**changes: Any) -> Callable[[], Any]:
    """A call of the operator in which the named arguments are others."""

    def call() -> Any:
        names = ("rows", "weights", "structures", "norms_in", "norms_out", "compatibilities")
        arguments = {"unary": UNARY, **dict(zip(names, _operator_arguments(_terms()), strict=True))}
        arguments |= {"order": ORDER, "start": None, "iterations": 2, "damping": 0.0, "tolerance": 0.0}
        arguments |= {"log_output": True, "gradients": "none", **changes}
        return OPS.mean_field(*arguments.values())

    return call


def _required() -> torch.Tensor:
    return UNARY.clone().requires_grad_()


ERRORS = [
    (_call(unary=UNARY[0]), ValueError, "unary must have shape (B, N, L), none of them 0; got (14, 3)"),
    (_call(unary=UNARY[:1]), ValueError, "2 images of 14 points; got 1 images of 14 points"),
    (_call(unary=UNARY.float()), TypeError, "weights must have the dtype of unary, torch.float32; got torch.float64"),
    (_call(unary=UNARY.half()), TypeError, "unary must be float32 or float64; got torch.float16"),
    (_call(compatibilities=[torch.zeros(2)] * 2), TypeError, "compatibilities must have the dtype of unary"),
    (
        _call(compatibilities=[UNARY[0, 0, :2]] * 2),
        ValueError,
        "compatibilities must have shape (), (3,) or (3, 3); got (2,)",
    ),
    (_call(compatibilities=[]), ValueError, "lists must have one entry a kernel each; got [2, 2, 2, 2, 2, 0]"),
    (_call(norms_in=[UNARY[0]] * 2), ValueError, "norms_in must have shape (2, 14); got (14, 3)"),
    (_call(order=ORDER.long()), ValueError, "order must be int32 of shape (14,); got torch.int64"),
    (_call(order=ORDER + 1), ValueError, "order must hold each of 0..13; got 1..14"),
    (_call(start=UNARY[:1]), ValueError, "start must have shape (2, 14, 3); got (1, 14, 3)"),
    (_call(iterations=-1), ValueError, "iterations must be a whole number >= 0; got -1"),
    (_call(damping=0.5), ValueError, "log_output must be False with damping, which mixes probabilities"),
    (_call(damping=1.0), ValueError, "damping must be in [0, 1)"),
    (_call(tolerance=math.nan), ValueError, "tolerance finite and >= 0"),
    (
        lambda: mean_field(UNARY, [], 1, gradients="all"),
        ValueError,
        "gradients must be one of store, recompute, implicit",
    ),
    (lambda: _call(unary=_required())(), ValueError, 'gradients must be "store", "recompute" or "implicit"'),
    (
        lambda: mean_field(_required(), _terms(), 2, updates=Updates(damping=0.5)),
        ValueError,
        'gradients must be "implicit" with damping',
    ),
    (
        lambda: mean_field(_required(), _terms(), 2, updates=Updates(tolerance=0.5), gradients="recompute"),
        ValueError,
        "with damping or a tolerance; got 'recompute' with damping=0.0, tolerance=0.5. Set both to 0",
    ),
    (
        lambda: _call(unary=_required(), start=UNARY, gradients="implicit")(),
        ValueError,
        'gradients="implicit" has no derivative in a start',
    ),
]


@pytest.mark.cpu_only  # its tensors are made before the device is known
@pytest.mark.parametrize(("call", "kind", "message"), ERRORS, ids=[message[:40] for _, _, message in ERRORS])
def test_errors(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()


@pytest.mark.cpu_only  # CUDA would have to wait for itself; NaN shows in the result there
def test_compatibilities_must_be_finite() -> None:
    with pytest.raises(ValueError, match="compatibilities must be finite"):
        _call(compatibilities=[UNARY[0, 0] / 0] * 2)()


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_a_start_without_iterations_is_the_result(damping: float) -> None:
    """log Q or Q, and its derivative."""
    start = crf_samples.normal(B, N, L, seed=7).softmax(-1).requires_grad_()
    updates = Updates(damping)
    gradients = "none" if damping else "store"
    with torch.set_grad_enabled(gradients == "store"):
        q = mean_field(UNARY, _terms(), 0, start=start, updates=updates, log_output=False)
        log_q = mean_field(UNARY, _terms(), 0, start=start, updates=updates)
    torch.testing.assert_close(q, start)
    torch.testing.assert_close(log_q, start.log())
    if gradients == "store":
        weights = crf_samples.normal(B, N, L, seed=8)
        (got,) = torch.autograd.grad((log_q * weights).sum(), start)
        torch.testing.assert_close(got, weights / start)


def test_the_public_function_has_few_parameters() -> None:
    assert len(inspect.signature(mean_field).parameters) <= 8
