"""`pydensecrf.eigen`: column-major float32 copies, and types that recognise what the drop-in returns."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from deeplab_crf.pydensecrf import densecrf, eigen


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_matrix_is_a_column_major_copy(dtype: Any, order: Any) -> None:
    given = np.array([[0, 1, 2], [3, 4, 5]], dtype, order=order)
    matrix = eigen.matrixXf(given)
    given[:] = 0
    np.testing.assert_array_equal(np.array(matrix), [[0, 1, 2], [3, 4, 5]])
    exported = memoryview(matrix)
    assert (exported.format, exported.shape, exported.strides) == ("f", (2, 3), (4, 8))


def test_vector_is_a_copy() -> None:
    given = np.arange(3, dtype=np.float32)
    vector = eigen.vectorXf(given)
    given[:] = 0
    assert memoryview(vector).tolist() == [0, 1, 2]
    assert memoryview(eigen.vectorXf([1, 2])).format == "f"


def test_empty_ones() -> None:
    assert np.array(eigen.MatrixXf()).shape == (0, 0)
    assert np.array(eigen.VectorXf()).shape == (0,)
    with pytest.raises(TypeError, match=r"MatrixXf\(\) takes no arguments .* use matrixXf"):
        eigen.MatrixXf(2, 3)


def test_types() -> None:
    result = densecrf.DenseCRF(4, 2).inference(1)
    assert isinstance(result, eigen.MatrixXf)
    assert not isinstance(result, eigen.VectorXf)
    assert isinstance(result[0], eigen.VectorXf)
    assert not isinstance(result.astype(np.float64), eigen.MatrixXf)
    assert not isinstance([[1.0]], eigen.MatrixXf)
    assert all(isinstance(matrix, eigen.MatrixXf) for matrix in densecrf.DenseCRF(4, 2).startInference())


def test_results_pickle_without_this_package() -> None:
    data = pickle.dumps(densecrf.DenseCRF(4, 2).inference(1))
    assert b"deeplab_crf" not in data
    np.testing.assert_array_equal(pickle.loads(data), np.full((2, 4), 0.5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: eigen.matrixXf(np.ones(3)), r"arr must have 2 axes; got shape \(3,\)"),
        (lambda: eigen.vectorXf(np.ones((2, 2))), r"arr must have 1 axes; got shape \(2, 2\)"),
    ],
)
def test_refused_shapes(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
    with pytest.raises(TypeError, match="arr must be an array of real numbers; got NoneType"):
        eigen.matrixXf(None)  # type: ignore[arg-type]
