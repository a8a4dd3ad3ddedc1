"""The lattice against the exact Gaussian it approximates: as far off as the literature says, and no further."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import samples

from deeplab_crf import PermutohedralLattice

NORMALIZED = ["before", "after", "symmetric"]


# (sxy, srgb or None, bound for noise, bound for a network's scores), both relative L2 of the message.
SETTINGS = [
    (1.0, None, 0.13, 0.03),
    (3.0, None, 0.13, 0.03),
    (10.0, None, 0.13, 0.03),
    (20.0, 13.0, 0.15, 0.07),
    (30.0, 30.0, 0.15, 0.07),
    (60.0, 20.0, 0.15, 0.07),
]


def scores(image: np.ndarray, labels: int) -> np.ndarray:
    """(N, L) probabilities that follow the image loosely, as a network's do."""
    rng = np.random.default_rng(5)
    planes = image.reshape(-1, image.shape[-1]).astype(np.float64) / 40.0
    logits = planes @ rng.normal(size=(image.shape[-1], labels)) + rng.normal(0.0, 0.5, (len(planes), labels))
    return oracle.softmax(logits.T).T


@pytest.mark.parametrize("normalization", NORMALIZED)
@pytest.mark.parametrize(("sxy", "srgb", "noise_bound", "scores_bound"), SETTINGS)
def test_messages_are_as_close_as_documented(
    sxy: float, srgb: float | None, noise_bound: float, scores_bound: float, normalization: str
) -> None:
    """Documented: 6-13 % for d = 2 and 13-15 % for d = 5. Scores, which are smooth and positive, come much closer."""
    image = samples.photo(30, 40)
    features = oracle.bilateral_features(image, sxy, srgb) if srgb else oracle.gaussian_features(30, 40, sxy)
    lattice, exact = PermutohedralLattice(features), oracle.GaussianFilter(features)
    for message, bound in ((samples.values(1200, 5), noise_bound), (scores(image, 5), scores_bound)):
        got = lattice.filter(message, normalization=normalization)
        assert samples.relative_l2(got, oracle.normalized_filter(exact, message, normalization)) <= bound


def test_a_point_far_from_all_others_keeps_its_value() -> None:
    features = samples.features(50, 5)
    features[20] = 500.0
    values = samples.values(50, 3)
    got = PermutohedralLattice(features).filter(values, normalization="after")
    np.testing.assert_allclose(got[20], values[20], rtol=1e-5)


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_single_point(dimensions: int) -> None:
    lattice = PermutohedralLattice(np.full((1, dimensions), 0.3, np.float32))
    value = np.array([[2.5, -1.0]], np.float32)
    assert lattice.num_vertices == dimensions + 1
    for normalization in ("before", "after", "symmetric"):
        np.testing.assert_allclose(lattice.filter(value, normalization=normalization), value, rtol=1e-6)
