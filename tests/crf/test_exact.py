"""The exact mode against the NumPy oracle, its gradients against finite differences, and its bounds on memory."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import oracle
import pytest
import samples
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deeplab_crf.crf.exact import exact_filter, exact_mean_field

POINTS, LABELS = 40, 3
NORMALIZATIONS = ["none", "before", "after", "symmetric"]
COMPATIBILITIES = {
    "potts": np.array(0.8),
    "diagonal": np.array([-0.5, -1.0, -0.7]),
    "matrix": np.random.default_rng(3).normal(size=(LABELS, LABELS)),
}


def problem(dtype: Any = torch.float64, batch: int = 2) -> tuple[Any, list[Any]]:
    """unary (B, N, L) and the features of two kernels, (B, N, 2) and (B, N, 4)."""
    unary = np.stack([samples.energies(LABELS, POINTS, seed).T for seed in range(batch)])
    features = [
        np.stack([samples.features(POINTS, dims, 10 * dims + seed, np.float64) for seed in range(batch)])
        for dims in (2, 4)
    ]
    return torch.tensor(unary, dtype=dtype), [torch.tensor(array, dtype=dtype) for array in features]


def oracle_log_q(
    unary: Any,
    features: list[Any],
    normalizations: list[str],
    compats: list[Any],
    iterations: int,
    damping: float = 0.0,
) -> np.ndarray:
    """log Q (N, L) of one image by the oracle."""
    kernels = [
        (oracle.GaussianFilter(points.double().numpy()), compat, normalization)
        for points, compat, normalization in zip(features, compats, normalizations, strict=True)
    ]
    field = oracle.MeanField(unary.double().numpy().T, kernels)
    return np.log(field.run(iterations, damping=damping)).T


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("compat", COMPATIBILITIES)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_equals_the_oracle(normalization: str, compat: str, dtype: Any) -> None:
    unary, features = problem(dtype)
    compats = [COMPATIBILITIES[compat], np.array(0.6)]
    normalizations = [normalization, "symmetric"]
    tensors = [torch.tensor(array, dtype=dtype) for array in compats]
    got = exact_mean_field(unary, features, normalizations, tensors, 4)
    for image in range(len(unary)):
        want = oracle_log_q(unary[image], [points[image] for points in features], normalizations, compats, 4)
        bound = 2e-5 if dtype == torch.float32 else 1e-12
        assert samples.scaled_error(got[image].numpy(), want) <= bound


def test_damping_equals_the_oracle() -> None:
    unary, features = problem()
    compats = [torch.tensor(0.8, dtype=torch.float64)] * 2
    got = exact_mean_field(unary, features, ["after"] * 2, compats, 3, damping=0.4)
    want = oracle_log_q(
        unary[0], [points[0] for points in features], ["after"] * 2, [np.array(0.8)] * 2, 3, damping=0.4
    )
    assert samples.scaled_error(got[0].numpy(), want) <= 1e-12


def test_distances_of_far_away_points_keep_their_precision() -> None:
    """|f|^2 + |g|^2 - 2 fg in float32 would be off by 1e-1 here."""
    features = torch.tensor(samples.features(POINTS, 2, dtype=np.float64)) + 1024.0  # exact in float32 up to 2^-14
    features = (features * 2**10).round() / 2**10
    values = torch.tensor(samples.values(POINTS, 2, dtype=np.float64))
    want = oracle.GaussianFilter(features.numpy() - 1024.0).apply(values.numpy())
    assert samples.scaled_error(exact_filter(values.float(), features.float()).numpy(), want) <= 2e-6


def test_no_kernels_or_no_iterations_is_the_start() -> None:
    unary, features = problem()
    start = torch.log_softmax(-unary, dim=-1)
    weight = torch.tensor(1.0, dtype=torch.float64)
    torch.testing.assert_close(exact_mean_field(unary, [], [], [], 5), start)
    torch.testing.assert_close(exact_mean_field(unary, features[:1], ["none"], [weight], 0), start)


def test_log_probabilities_do_not_underflow() -> None:
    unary, features = problem(torch.float32)
    got = exact_mean_field(unary * 1000, features[:1], ["symmetric"], [torch.tensor(1.0)], 2)
    assert torch.isfinite(got).all()
    assert got.min() < -1000


def test_an_image_alone_has_the_same_bits() -> None:
    unary, features = problem(torch.float32, batch=3)
    rest = (["symmetric", "after"], [torch.tensor(0.8), torch.tensor(0.5)], 3)
    together = exact_mean_field(unary, features, *rest)
    for image in range(3):
        alone = exact_mean_field(unary[image : image + 1], [points[image : image + 1] for points in features], *rest)
        assert torch.equal(together[image], alone[0])


def test_tolerance_stops_each_image_by_itself() -> None:
    unary, features = problem()
    unary[0] *= 4  # surer of itself
    rest = (["symmetric"], [torch.tensor(0.8, dtype=torch.float64)])
    runs = [exact_mean_field(unary, features[:1], *rest, iterations) for iterations in range(13)]
    moves = torch.stack([(a.exp() - b.exp()).abs().amax((1, 2)) for a, b in pairwise(runs)])  # (12, 2)
    tolerance = 2e-6
    stops = [int((moves[:, image] <= tolerance).int().argmax()) + 1 for image in range(2)]
    assert 1 < min(stops) < max(stops) < 12
    stopped = exact_mean_field(unary, features[:1], *rest, 12, tolerance=tolerance)
    for image, stop in enumerate(stops):
        assert torch.equal(stopped[image], runs[stop][image])


def test_masked_points_take_no_part() -> None:
    unary, features = problem()
    mask = torch.rand(unary.shape[:2], generator=torch.Generator().manual_seed(0)) < 0.7
    rest = (["symmetric", "none"], [torch.tensor(0.8, dtype=torch.float64)] * 2, 3)
    got = exact_mean_field(unary, features, *rest, mask=mask)
    for image, kept in enumerate(mask):
        alone = exact_mean_field(
            unary[image : image + 1, kept], [points[image : image + 1, kept] for points in features], *rest
        )
        torch.testing.assert_close(got[image, kept], alone[0], rtol=0, atol=0)
        torch.testing.assert_close(got[image, ~kept], torch.log_softmax(-unary[image, ~kept], dim=-1), rtol=0, atol=0)


def test_a_wholly_masked_image_comes_back() -> None:
    unary, features = problem()
    mask = torch.zeros(unary.shape[:2], dtype=torch.bool)
    got = exact_mean_field(unary, features[:1], ["symmetric"], [torch.tensor(1.0, dtype=torch.float64)], 3, mask=mask)
    torch.testing.assert_close(got, torch.log_softmax(-unary, dim=-1))


@pytest.mark.parametrize("chunk", [1, 100, 7 * POINTS, 10**6])
def test_the_size_of_the_tiles_does_not_show(chunk: int) -> None:
    features = torch.tensor(samples.features(POINTS, 3, dtype=np.float64))
    values = torch.tensor(samples.values(POINTS, 2, dtype=np.float64))
    want = oracle.GaussianFilter(features.numpy()).apply(values.numpy())
    assert samples.scaled_error(exact_filter(values, features, chunk=chunk).numpy(), want) <= 1e-12


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that an operator returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_no_tensor_is_larger_than_a_tile() -> None:
    points, chunk = 300, 2000
    features = torch.tensor(samples.features(points, 2)).requires_grad_()
    values = torch.tensor(samples.values(points, 2)).requires_grad_()
    with LargestTensor() as forward:
        out = exact_filter(values, features, chunk=chunk)
    with LargestTensor() as backward:
        out.square().sum().backward()
    assert max(forward.elements, backward.elements) <= chunk
    assert max(forward.elements, backward.elements) > chunk // 2  # it saw the tiles


def test_the_backward_pass_keeps_no_tiles() -> None:
    points, chunk = 300, 2000
    features = torch.tensor(samples.features(points, 2)).requires_grad_()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        exact_filter(torch.ones(points, 2), features, chunk=chunk)
    assert max(kept) <= 2 * points  # features and values, which exist anyway


@pytest.mark.parametrize("compat", COMPATIBILITIES)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradients(normalization: str, compat: str) -> None:
    unary, features = problem(batch=1)
    inputs = (unary[:, :8], features[0][:, :8], torch.tensor(COMPATIBILITIES[compat]))
    for tensor in inputs:
        tensor.requires_grad_()

    def refine(energies: Any, points: Any, compatibility: Any) -> Any:
        return exact_mean_field(energies, [points], [normalization], [compatibility], 2)

    assert torch.autograd.gradcheck(refine, inputs)


def test_gradients_of_points_at_the_same_place_are_finite() -> None:
    features = torch.zeros(5, 2, dtype=torch.float64, requires_grad=True)
    values = torch.ones(5, 1, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(exact_filter(values, features).sum(), features)
    assert torch.equal(gradient, torch.zeros(5, 2, dtype=torch.float64))
