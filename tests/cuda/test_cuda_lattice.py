"""Lattices of the CUDA engine, emulated on the CPU: against the CPU engine's, and against themselves."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import samples
from cuda_native import CudaLattices, address
from native_batch import Lattices
from numpy.typing import NDArray

Array = NDArray[Any]

DTYPES = [np.float32, np.float64]
# One off from the blocks of threads, from the points a thread measures, and more than a block of those.
POINTS = [1, 2, 31, 33, 85, 86, 127, 129, 255, 256, 257, 2047, 2049]


def features(batch: int, points: int, dims: int, dtype: type = np.float32, seed: int = 0) -> Array:
    """(B, N, d), dense enough for neighbours along every axis."""
    return np.random.default_rng(seed).normal(0, 1.5, (batch, points, dims)).astype(dtype)


def values(*shape: int, dtype: type = np.float32, seed: int = 1) -> Array:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(dtype)


def check(emulated: ModuleType, points: Array, channels: int) -> None:
    """The weights bit for bit, the same vertices, and the same filter as on the CPU."""
    lattices, judge = CudaLattices(emulated, points), Lattices(points)
    assert lattices.check() == sum(judge.num_vertices)
    assert lattices.num_vertices == judge.num_vertices
    np.testing.assert_array_equal(lattices.weights, judge.weights)
    inputs = values(*points.shape[:2], channels, dtype=points.dtype.type)
    for transpose in (False, True):
        got, want = lattices.filter(inputs, transpose=transpose), judge.filter(inputs, transpose=transpose)
        assert samples.scaled_error(got, want) <= samples.TOLERANCE[points.dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", [1, 2, 3, 4, 5, 8, 17, 32])
def test_every_dimension(emulated: ModuleType, dims: int, dtype: type) -> None:
    check(emulated, features(2, 300, dims, dtype), 5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 21, 24, 33, 150])
def test_every_kind_of_row(emulated: ModuleType, channels: int, dtype: type) -> None:
    check(emulated, features(2, 200, 3, dtype), channels)


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("dims", [2, 5])
def test_every_size(emulated: ModuleType, points: int, dims: int) -> None:
    check(emulated, features(1, points, dims), 3)
    check(emulated, features(3, points, dims), 3)


def test_lists_of_many_pieces(emulated: ModuleType) -> None:
    """All points in one simplex: three vertices with contributions from every point; and lists one off from whole pieces."""
    for points in (31, 32, 33, 63, 64, 65, 1000):
        check(emulated, 0.01 * features(1, points, 2), 3)


def test_photographs_features(emulated: ModuleType) -> None:
    """An image's own: rows of equal points, colours in steps, faces of simplices hit exactly."""
    y, x = np.mgrid[:40, :50]
    image = np.random.default_rng(0).integers(0, 8, (2, 40, 50, 3)) * 31
    points = np.concatenate([np.broadcast_to(np.stack([x, y], 2) / 80, (2, 40, 50, 2)), image / 13], 3)
    check(emulated, points.reshape(2, -1, 5).astype(np.float32), 21)
    check(emulated, np.ascontiguousarray(points.reshape(2, -1, 5)[..., :2]).astype(np.float32), 21)


def test_features_of_any_strides(emulated: ModuleType) -> None:
    plain = features(2, 200, 3)
    shuffled = np.asfortranarray(plain)[::-1, ::-1]
    want, got = CudaLattices(emulated, np.ascontiguousarray(shuffled)), CudaLattices(emulated, shuffled)
    np.testing.assert_array_equal(got.structure, want.structure)
    grad = values(2, 200, 4)
    np.testing.assert_array_equal(got.embed_gradient(grad), want.embed_gradient(grad))


@pytest.mark.parametrize(("dims", "scale", "words"), [(2, 1e8, 1), (5, 3e5, 4), (9, 1e3, 4), (32, 1e4, 16)])
def test_wide_keys(emulated: ModuleType, dims: int, scale: float, words: int) -> None:
    """Features whose keys fill several words. Double precision, or their weights would be those of the CPU by luck."""
    points = features(2, 150, dims, np.float64)
    points[:, ::2] += scale / dims
    lattices = CudaLattices(emulated, points)
    assert lattices.key_words == words
    check(emulated, points, 3)


def test_an_image_far_from_zero_is_embedded_in_double(emulated: ModuleType) -> None:
    """And the one beside it in float, as alone."""
    points = features(2, 500, 3)
    points[1] += 30000
    check(emulated, points, 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_image_has_the_bits_of_its_run_alone(emulated: ModuleType, dtype: type) -> None:
    many, inputs, grad = (
        features(4, 400, 5, dtype),
        values(4, 400, 21, dtype=dtype),
        values(4, 400, 21, dtype=dtype, seed=2),
    )
    many[2] *= 0.02  # few vertices, long lists
    many[3] += 30000  # in double
    together = CudaLattices(emulated, many)
    for image in range(4):
        alone = CudaLattices(emulated, many[image : image + 1])
        one = slice(image, image + 1)
        for transpose in (False, True):
            np.testing.assert_array_equal(
                together.filter(inputs, transpose=transpose)[one], alone.filter(inputs[one], transpose=transpose)
            )
        np.testing.assert_array_equal(
            together.weight_gradient(inputs, grad)[one], alone.weight_gradient(inputs[one], grad[one])
        )


def test_equal_images_share_no_vertex(emulated: ModuleType) -> None:
    many = np.repeat(features(1, 200, 3), 16, axis=0)
    vertices = CudaLattices(emulated, many[:1]).check()
    together = CudaLattices(emulated, many, max_vertices=16 * vertices)
    assert together.check() == 16 * vertices
    assert together.num_vertices == [vertices] * 16


@pytest.mark.parametrize("points", [1, 2, 3])
def test_equal_images_that_meet_in_the_table(emulated: ModuleType, points: int) -> None:
    """The hash keeps equal keys of different images apart in a table at most half full. In one that is all but full, because the
    bound is too small, a search comes by them: they count as vertices of their own."""
    one = features(1, points, 2)
    each = CudaLattices(emulated, one).check()
    batch = 512 // each
    full = CudaLattices(emulated, np.repeat(one, batch, axis=0), max_vertices=256)
    with pytest.raises(ValueError, match=rf"got 256, and there are {batch * each}\. Give"):
        full.check()


@pytest.fixture
def thread_order(emulated: ModuleType) -> Iterator[Any]:
    yield emulated.set_thread_order
    emulated.set_thread_order(0)


def test_the_order_of_threads_does_not_show(emulated: ModuleType, thread_order: Any) -> None:
    """Blocks and threads run in ascending order, in descending order and shuffled: what depends on who comes first, or reads what
    another thread has yet to write, would show."""
    many, inputs, grad = features(3, 700, 5), values(3, 700, 21), values(3, 700, 21, seed=2)

    def everything() -> list[Array]:
        lattices = CudaLattices(emulated, many)
        gradient = lattices.weight_gradient(inputs, grad)
        built = [lattices.rows, lattices.weights, lattices.structure]
        return [*built, lattices.filter(inputs), gradient, lattices.embed_gradient(gradient)]

    want = everything()
    for order in (0, 1, 2, 3):
        thread_order(order)
        for got, expected in zip(everything(), want, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_numbers_of_first_touch(emulated: ModuleType) -> None:
    """Vertices are numbered as the points come to them."""
    rows = CudaLattices(emulated, features(2, 300, 3)).rows.ravel()
    first = np.unique(rows, return_index=True)[1]
    assert (np.diff(first) > 0).all()


def test_arguments_out_of_range(emulated: ModuleType) -> None:
    size = emulated.structure_size
    with pytest.raises(ValueError, match="at least one image of one point; got 0 of 5"):
        size((0, 5, 2), 10)
    with pytest.raises(ValueError, match="features must have 1 to 32 dimensions; got 33"):
        size((1, 5, 33), 10)
    with pytest.raises(ValueError, match=r"at most 2\^30 simplex corners, .*; got 4 x 100000000 x 3"):
        size((4, 100000000, 2), 10)
    with pytest.raises(ValueError, match="key_words must be one of KEY_WORDS; got 3"):
        emulated.lattice_build_workspace_f32((0, 0), (1, 5, 2), 3, 0)
    with pytest.raises(ValueError, match="max_vertices must not be negative"):
        emulated.lattice_build_workspace_f32((0, 0), (1, 5, 2), 1, -1)
    for capacity in (0, -1, 2**30 + 1):
        with pytest.raises(ValueError, match=rf"capacity must be 1 to 2\^30 vertices; got {capacity}"):
            size((1, 5, 2), capacity)
    with pytest.raises(ValueError, match=r"capacity must be 1 to 2\^30 vertices; got 1073741825"):
        emulated.lattice_build_workspace_f32((0, 0), (1, 5, 2), 1, 2**30 + 1)
    with pytest.raises(ValueError, match=r"capacity must be max_vertices, 7, as in lattice_embed; got 8"):
        emulated.lattice_connect_f32((0, 0), (0, (1, 5, 2), (0, 0, 0)), 0, 0, 8, (1, 7, 0))
    lattices = CudaLattices(emulated, features(2, 50, 3))
    for length in (0, lattices.structure.size - 1, lattices.structure.size + 1):
        with pytest.raises(
            ValueError, match=f"structure must be what lattice_build returned .* got another array of {length}"
        ):
            emulated.image_begin((2, 50, 3), length)
    with pytest.raises(ValueError, match="structure must be what lattice_build returned; got other integers"):
        emulated.check_header(address(np.zeros(16, np.int32)), 0)


@pytest.mark.parametrize("channels", [-1, 2**24 + 1, 2**40])
def test_channels_out_of_range(emulated: ModuleType, channels: int) -> None:
    shape = (1, 5, 2)
    lattice = (0, 0, 0, emulated.structure_size(shape, 7))
    message = rf"channels \(or labels\) must be 0 to 2\^24 on CUDA; got {channels}"
    with pytest.raises(ValueError, match=message):
        emulated.lattice_filter_workspace_f32(shape, lattice[3], channels)
    with pytest.raises(ValueError, match=message):
        emulated.mean_field_workspace_f64((1, 5, channels))
    for suffix in ("f32", "f64", "f16", "bf16"):
        with pytest.raises(ValueError, match=message):
            getattr(emulated, f"lattice_filter_{suffix}")((0, 0), lattice, shape, 0, 0, channels, 0, False)


def test_more_threads_than_a_grid_has(emulated: ModuleType) -> None:
    """Refused before anything is touched, not wrapped around to a few of them."""
    shape = (1, 5, 2)
    lattice = (0, 0, 0, emulated.structure_size(shape, 2**17 + 1))
    with pytest.raises(ValueError, match=r"at most 549755813632 threads; got \d+\. Process fewer images, points or"):
        emulated.lattice_filter_f32((0, 0), lattice, shape, 0, 0, 2**24, 0, False)


def test_no_channels(emulated: ModuleType) -> None:
    lattices, nothing = CudaLattices(emulated, features(2, 50, 3)), values(2, 50, 0)
    for transpose in (False, True):
        assert lattices.filter(nothing, transpose=transpose).shape == (2, 50, 0)
        np.testing.assert_array_equal(lattices.weight_gradient(nothing, nothing, transpose=transpose), 0)
