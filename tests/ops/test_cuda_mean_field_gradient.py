"""mean_field_backward for CUDA tensors: here on CPU tensors, over the emulated engine."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from cuda_models import BATCH, DTYPES, POINTS, Model, random
from native_batch import KernelGradient

from deeplab_crf.ops.cuda import mean_field_gradient as implementation
from deeplab_crf.ops.cuda.engine import Engine


def tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(array) if array is not None else torch.empty(0)


@pytest.fixture
def gradient(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(implementation, "engine_for", lambda _: Engine(emulated, (0, 0)))
    return implementation.mean_field_gradient


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("implicit", "log_output", "from_start"), [(0, 0, 0), (0, 1, 1), (1, 1, 0), (1, 0, 0)])
def test_it_is_what_the_engine_computes(
    emulated: ModuleType, gradient: Any, implicit: int, log_output: int, from_start: int, dtype: Any
) -> None:
    """Each gradient where the schema has it, and none that was not asked for."""
    order = np.random.default_rng(4).permutation(POINTS).astype(np.int32)
    start = np.random.default_rng(5).dirichlet(np.ones(5), (BATCH, POINTS)).astype(dtype) if from_start else None
    model = Model(emulated, 5, dtype, ("diagonal", "matrix"), order=order, log_output=bool(log_output))
    out, trace, _ = model.cpu(start)
    if implicit:
        trace = np.exp(out) if log_output else out
        model.watched["tolerance"] = 1e-3
    grad = random(*out.shape, dtype=dtype, seed=1)
    engine = model.cuda_engine()
    first, second = engine.kernels
    norm_in, norm_out, weights = (np.empty_like(a) for a in (first.norm_in, second.norm_out, second.lattices.weights))
    asked = [KernelGradient(np.empty_like(first.compat), norm_in), KernelGradient(None, None, norm_out, weights)]
    want_unary, want_start, _, _ = engine.gradient(emulated, out, trace, grad, asked, start=bool(from_start))

    lattices = [kernel.lattices for kernel in engine.kernels]
    got_unary, got_start, *lists = gradient(
        tensor(grad.transpose(0, 2, 1).copy()).transpose(1, 2),  # not contiguous
        tensor(out),
        tensor(trace),
        [tensor(entry.rows) for entry in lattices],
        [tensor(entry.weights) for entry in lattices],
        [tensor(entry.structure) for entry in lattices],
        [tensor(kernel.norm_in) for kernel in engine.kernels],
        [tensor(kernel.norm_out) for kernel in engine.kernels],
        [tensor(kernel.compat) for kernel in engine.kernels],
        tensor(order),
        engine.iterations,
        engine.tolerance,
        bool(log_output),
        bool(from_start),
        bool(implicit),
        [
            False,
            True,
            False,
            True,
            True,
            False,
            True,
            False,
        ],  # weights, norm_in, norm_out, compatibility of each kernel
    )
    np.testing.assert_array_equal(got_unary, want_unary)
    if from_start:
        np.testing.assert_array_equal(got_start, want_start)
    else:
        assert got_start.numel() == 0
    wanted = [[None, weights], [norm_in, None], [None, norm_out], [asked[0].compat, None]]
    for got, want in zip(lists, wanted, strict=True):
        for mine, array in zip(got, want, strict=True):
            if array is None:
                assert mine.numel() == 0
            else:
                np.testing.assert_array_equal(mine, array)


def test_shapes_are_checked(gradient: Any) -> None:
    out, trace = torch.zeros(1, 3, 2), torch.zeros(2, 1, 3, 2)
    rest: tuple[Any, ...] = (*[[]] * 6, None, 2, 0.0, False, False, False, [])
    with pytest.raises(ValueError, match="grad must have shape"):
        gradient(out[:, :2], out, trace, *rest)
    with pytest.raises(ValueError, match="trace must have shape"):
        gradient(out, out, trace[:1], *rest)
    with pytest.raises(TypeError, match="trace must have the dtype of out"):
        gradient(out, out, trace.double(), *rest)
