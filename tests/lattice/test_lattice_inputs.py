"""Inputs of every layout are taken as they are; inputs without meaning are refused, by name and with the cure."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
import samples
from numpy.typing import NDArray

from deeplab_crf import PermutohedralLattice


def _layouts(array: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The same numbers in every memory layout."""
    rows, columns = array.shape
    wide = np.zeros((2 * rows, 3 * columns), array.dtype)
    wide[::2, ::3] = array
    read_only = array.copy()
    read_only.flags.writeable = False
    swapped = array.astype(array.dtype.newbyteorder())
    unaligned = np.frombuffer(b"\0" + array.tobytes(), np.uint8)[1:].view(array.dtype).reshape(array.shape)
    return {
        "fortran": np.asfortranarray(array),
        "strided": wide[::2, ::3],
        "negative strides": array[::-1, ::-1].copy()[::-1, ::-1],
        "read-only": read_only,
        "byte-swapped": swapped,
        "unaligned": unaligned,
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_memory_layouts(dtype: type) -> None:
    features, values = samples.features(200, 5, dtype=dtype), samples.values(200, 6, dtype=dtype)
    want = PermutohedralLattice(features).filter(values, normalization="after")
    for name, layout in _layouts(features).items():
        np.testing.assert_array_equal(
            PermutohedralLattice(layout).filter(values, normalization="after"), want, err_msg=name
        )
    lattice = PermutohedralLattice(features)
    for name, layout in _layouts(values).items():
        np.testing.assert_array_equal(lattice.filter(layout, normalization="after"), want, err_msg=name)


def test_inputs_are_left_alone_and_not_kept() -> None:
    features, values = samples.features(200, 3), samples.values(200, 3)
    copies = features.copy(), values.copy()
    lattice = PermutohedralLattice(features)
    want = lattice.filter(values)
    np.testing.assert_array_equal(features, copies[0])
    np.testing.assert_array_equal(values, copies[1])
    features[:] = 0
    np.testing.assert_array_equal(lattice.filter(values), want)


@pytest.mark.parametrize("dtype", [np.float16, np.int32, np.uint8, np.int64, np.bool_])
def test_other_dtypes_are_cast(dtype: type) -> None:
    features = (samples.features(100, 3) * 3).astype(dtype)
    values = (samples.values(100, 3) * 3).astype(dtype)
    lattice = PermutohedralLattice(features)
    assert lattice.dtype == np.float32
    want = PermutohedralLattice(features.astype(np.float32)).filter(values.astype(np.float32))
    np.testing.assert_array_equal(lattice.filter(values), want)


def test_lists_are_taken() -> None:
    features = samples.features(10, 2, dtype=np.float32)
    got = PermutohedralLattice(features.tolist()).filter([1.0] * 10)
    assert samples.scaled_error(got, oracle.Lattice(features).apply(np.ones((10, 1)))[:, 0]) <= 1e-5


def _build_or_refuse(features: NDArray[Any]) -> PermutohedralLattice | None:
    """The lattice, or None if it was refused with an error that names the features."""
    try:
        return PermutohedralLattice(features)
    except ValueError as error:
        if "features" not in str(error):
            raise
        return None


@pytest.mark.parametrize("distance", [1e5, 1e7, 1e8, 1e12, 1e15, 1e30, 1e300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dimensions", [1, 2, 5, 9])
def test_far_features_are_right_or_refused(dimensions: int, dtype: type, distance: float) -> None:
    """Two groups of equal points, that far apart, share nothing: each returns its own mean, or the call raises."""
    features = np.zeros((40, dimensions), np.float64)
    features[::2] = distance * (1.0 + 0.1 * np.arange(dimensions))
    with np.errstate(over="ignore"):
        features = features.astype(dtype)
    values = samples.values(40, 3, dtype=dtype)
    lattice = _build_or_refuse(features)
    if lattice is None:
        return
    got = lattice.filter(values, normalization="after")
    for group in (slice(0, None, 2), slice(1, None, 2)):
        want = np.broadcast_to(values[group].mean(axis=0), (20, 3))
        np.testing.assert_allclose(got[group], want, atol=1e-4)


@pytest.mark.parametrize("distance", [2.0**15, 2.0**20, 2.0**31, 2.0**33])
@pytest.mark.parametrize("dimensions", [1, 2, 3, 5, 8])
def test_wide_keys_equal_the_oracle_where_it_can_tell(dimensions: int, distance: float) -> None:
    """Double features keep their fraction this far out; keys must not wrap."""
    features = samples.features(300, dimensions, dtype=np.float64)
    features[::2] += distance
    features[::3] -= 2 * distance
    values = samples.values(300, 2, dtype=np.float64)
    lattice = _build_or_refuse(features)
    if lattice is None:
        return
    judge = oracle.Lattice(features)
    assert lattice.num_vertices == judge.num_vertices
    assert samples.scaled_error(lattice.filter(values), judge.apply(values)) <= 1e-9


GOOD = samples.features(20, 3)


def _with(array: NDArray[Any], value: float) -> NDArray[Any]:
    changed = array.copy()
    changed[7, 1] = value
    return changed


BAD_FEATURES = {
    "nan": (_with(GOOD, np.nan), "features.*(NaN|nan|finite)"),
    "inf": (_with(GOOD, np.inf), "features.*(inf|finite)"),
    "minus inf": (_with(GOOD, -np.inf), "features.*(inf|finite)"),
    "a vector": (GOOD[:, 0], r"features.*\(N, d\)"),
    "three axes": (GOOD[None], r"features.*\(N, d\)"),
    "no points": (GOOD[:0], "features.*(empty|no points|at least)"),
    "no dimensions": (GOOD[:, :0], "features.*1 to.*dimensions.*0"),
    "too many dimensions": (np.zeros((5, 33), np.float32), "features.*32.*dimensions.*33"),
    "text": (np.array([["a", "b"]]), "features"),
    "complex": (GOOD.astype(np.complex64), "features"),
}


@pytest.mark.parametrize("case", BAD_FEATURES)
def test_bad_features(case: str) -> None:
    features, match = BAD_FEATURES[case]
    with pytest.raises((ValueError, TypeError), match=f"(?is){match}"):
        PermutohedralLattice(features)


BAD_VALUES = {
    "too few": (GOOD[:19], "values.*20.*19"),
    "three axes": (GOOD[None], "values"),
    "a number": (np.float32(1), "values"),
    "complex": (GOOD.astype(np.complex64), "values"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_values(case: str) -> None:
    values, match = BAD_VALUES[case]
    lattice = PermutohedralLattice(GOOD)
    with pytest.raises((ValueError, TypeError), match=f"(?is){match}"):
        lattice.filter(values)


def test_unknown_normalization() -> None:
    with pytest.raises(ValueError, match=r"normalization.*none.*before.*after.*symmetric.*'mean'"):
        PermutohedralLattice(GOOD).filter(GOOD, normalization="mean")


@pytest.mark.parametrize("threads", [0, -1])
def test_bad_threads(threads: int) -> None:
    with pytest.raises(ValueError, match="threads"):
        PermutohedralLattice(GOOD, threads=threads)
