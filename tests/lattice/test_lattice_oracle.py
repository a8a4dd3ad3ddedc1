"""The lattice against the float64 oracle: every dimension, channel count and size next to an edge of the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
import samples
from numpy.typing import NDArray

from deeplab_crf import PermutohedralLattice

DTYPES = [np.float32, np.float64]
CHANNELS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 21, 24, 25, 31, 32, 33, 48, 64, 65, 150]
# One off from vector widths, from cache blocks and from the chunks that threads share.
POINTS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 255, 256, 257, 1023, 1025, 4095, 4097]
LARGE_POINTS = [16383, 16384, 16385, 32769, 65535, 65537]


def check(features: NDArray[Any], values: NDArray[Any], normalization: str, transpose: bool = False) -> None:
    """Same number of vertices as the oracle, and the same filter."""
    dtype = features.dtype
    lattice = PermutohedralLattice(features)
    judge = oracle.Lattice(features, dtype)
    assert lattice.num_vertices == judge.num_vertices
    got = lattice.filter(values, normalization=normalization, transpose=transpose)
    want = oracle.normalized_filter(judge, values, normalization, transpose=transpose)
    assert got.dtype == dtype
    assert samples.scaled_error(got, want) <= samples.TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dimensions", [*range(1, 18), 24, 32])
def test_every_dimension(dimensions: int, dtype: type) -> None:
    features = samples.features(400, dimensions, seed=dimensions, dtype=dtype)
    values = samples.values(400, 5, dtype=dtype)
    for normalization in oracle.NORMALIZATIONS:
        check(features, values, normalization)
        check(features, values, normalization, transpose=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_every_channel_count(channels: int, dtype: type) -> None:
    for dimensions in (2, 5):
        features = samples.features(700, dimensions, dtype=dtype)
        values = samples.values(700, channels, seed=channels, dtype=dtype)
        check(features, values, "none")
        check(features, values, "symmetric")
        check(features, values, "after", transpose=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("points", POINTS)
def test_sizes_next_to_an_edge(points: int, dtype: type) -> None:
    for dimensions in (2, 5):
        features = samples.features(points, dimensions, seed=points, dtype=dtype)
        for channels in (1, 21):
            check(features, samples.values(points, channels, dtype=dtype), "symmetric")


@pytest.mark.parametrize("points", LARGE_POINTS)
def test_large_sizes(points: int) -> None:
    features = samples.features(points, 5, seed=points)
    check(features, samples.values(points, 3), "after")


@pytest.mark.parametrize("normalization", oracle.NORMALIZATIONS)
@pytest.mark.parametrize(("sxy", "srgb"), [(80.0, 13.0), (67.0, 3.0), (121.0, 5.0), (8.0, 60.0)])
def test_images(sxy: float, srgb: float, normalization: str) -> None:
    image = samples.photo(60, 80)
    features = oracle.bilateral_features(image, sxy, srgb)
    check(features, samples.values(4800, 21), normalization)


@pytest.mark.parametrize("normalization", ["none", "symmetric"])
def test_images_of_several_chunks(normalization: str) -> None:
    """Points are cut into chunks of about 16384: here vertices are shared by chunks side by side and far apart."""
    image = samples.photo(211, 250)
    for features in (oracle.bilateral_features(image, 30.0, 20.0), oracle.gaussian_features(211, 250, 5.0)):
        check(features, samples.values(len(features), 5), normalization)
        check(features, samples.values(len(features), 5), normalization, transpose=True)


def test_more_points_than_the_largest_number_of_chunks() -> None:
    """Beyond 256 chunks of 16384 points the chunks grow instead."""
    points = 256 * 16384 + 77777
    features = (np.arange(points, dtype=np.float32) / 3001.0)[:, None]
    check(features, samples.values(points, 1), "after")


@pytest.mark.parametrize("sxy", [0.5, 1.0, 3.0, 40.0])
def test_pixel_grids(sxy: float) -> None:
    """Points exactly on faces of the lattice: zero-weight vertices exist, and rounding decides which."""
    check(oracle.gaussian_features(61, 83, sxy), samples.values(61 * 83, 7), "symmetric")


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5, 6, 9, 17])
def test_lattice_points_and_faces_exactly(dimensions: int) -> None:
    """Integer and half-integer features make ties in rounding and in ranking."""
    rng = np.random.default_rng(dimensions)
    features = rng.integers(-6, 7, (500, dimensions)).astype(np.float32) / 2
    check(features, samples.values(500, 4), "none")
    check(np.zeros((9, dimensions), np.float32), samples.values(9, 4), "none")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-6, 1e2, 1e3, 1e4])
@pytest.mark.parametrize("dimensions", [1, 2, 3, 5, 6, 8, 11, 32])
def test_spread_of_features(dimensions: int, scale: float, dtype: type) -> None:
    """Keys of every width. Far from the origin the engine computes the geometry of float32 features in double."""
    features = samples.features(600, dimensions, seed=3) * scale
    features[::3] = features[0] + samples.features(200, dimensions, seed=4)  # neighbours that meet, far from the origin
    features = features.astype(dtype)
    values = samples.values(600, 3, dtype=dtype)
    lattice = PermutohedralLattice(features)
    geometries = {1e-6: [dtype], 1e2: [dtype], 1e3: DTYPES, 1e4: [np.float64]}[scale]
    judges = [oracle.Lattice(features, geometry) for geometry in geometries]
    assert lattice.num_vertices in {judge.num_vertices for judge in judges}
    errors = [samples.scaled_error(lattice.filter(values), judge.apply(values.astype(float))) for judge in judges]
    assert min(errors) <= samples.TOLERANCE[np.dtype(dtype)]


@pytest.mark.parametrize("dimensions", [2, 5, 9])
def test_one_distant_point(dimensions: int) -> None:
    """A single outlier widens the keys of all: the narrow ones must not wrap onto each other."""
    for distance in (300.0, 2600.0, 4096.0, 33000.0, 2.0**21):
        features = samples.features(300, dimensions, dtype=np.float64)
        features[137] = distance
        features[211] = -distance
        check(features, samples.values(300, 2, dtype=np.float64), "none")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("points", [1, 2, 15, 700, 17000])
@pytest.mark.parametrize("dimensions", [1, 2, 5, 9])
def test_vertices_around_the_origin_exist_on_request(dimensions: int, points: int, dtype: type) -> None:
    """pydensecrf pads its points to fours with zeros, whose vertices take part in the blur."""
    values = samples.values(points, 3, dtype=dtype)
    for distance in (0.0, 0.6, 3.0, 30.0):  # there already, neighbours of the points' vertices, out of their reach
        features = samples.features(points, dimensions, dtype=dtype) + dtype(distance)
        lattice = PermutohedralLattice(features, touch_origin=True)
        judge = oracle.Lattice(features, dtype, touch_origin=True)
        assert lattice.num_vertices == judge.num_vertices
        for normalization in ("none", "symmetric"):
            got = lattice.filter(values, normalization=normalization)
            want = oracle.normalized_filter(judge, values, normalization)
            assert samples.scaled_error(got, want) <= samples.TOLERANCE[np.dtype(dtype)]


def test_one_column_equals_a_vector() -> None:
    lattice = PermutohedralLattice(samples.features(300, 3))
    column = samples.values(300, 1)
    assert lattice.filter(column[:, 0]).shape == (300,)
    np.testing.assert_array_equal(lattice.filter(column[:, 0]), lattice.filter(column)[:, 0])


def test_attributes() -> None:
    features = samples.features(300, 3, dtype=np.float64)
    lattice = PermutohedralLattice(features)
    assert (lattice.num_points, lattice.num_dimensions) == (300, 3)
    assert lattice.dtype == np.float64
    assert PermutohedralLattice(features.astype(np.float32)).dtype == np.float32


def test_no_channels_is_an_empty_result() -> None:
    lattice = PermutohedralLattice(samples.features(30, 3))
    assert lattice.filter(np.zeros((30, 0), np.float32)).shape == (30, 0)
