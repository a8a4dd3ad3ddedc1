"""What is not finite is refused by the exact method as by the lattice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from deeplab_crf import DenseCRF, Gaussian

LOGITS = torch.randn(1, 3, 5, 6, generator=torch.Generator().manual_seed(0))
IMAGE = 255 * torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(1))


def changed(tensor: Any, value: float) -> Any:
    result = tensor.clone()
    result[0, 1, 2, 3] = value
    return result


def with_number(method: str, name: str, value: float) -> object:
    """A layer of which one number has become ``value`` in training."""
    layer = DenseCRF(3, method=method, trainable=("weights", "bandwidths"))
    getattr(layer, name).data.view(-1)[0] = value
    return layer(LOGITS, IMAGE)


CASES: dict[str, tuple[Callable[[str], object], str]] = {
    "NaN logits": (
        lambda method: DenseCRF(3, method=method)(changed(LOGITS, math.nan), IMAGE),
        "logits must be finite",
    ),
    "NaN image": (lambda method: DenseCRF(3, method=method)(LOGITS, changed(IMAGE, math.nan)), "(image|features) must"),
    "infinite image": (
        lambda method: DenseCRF(3, method=method)(LOGITS, changed(IMAGE, math.inf)),
        "(image|features) must",
    ),
    "NaN spacing": (
        lambda method: DenseCRF(3, method=method)(LOGITS, IMAGE, spacing=(math.nan, 1.0)),
        "(spacing|features) must",
    ),
    "NaN weight": (lambda method: with_number(method, "weights", math.nan), "compatibilities must be finite"),
    "huge weight": (
        lambda method: with_number(method, "weights", 3e38),
        "compatibilities must be finite and at most 1e",
    ),
    "NaN width": (lambda method: with_number(method, "log_sxy", math.nan), "features must be finite"),
    "tiny width": (lambda method: with_number(method, "log_sxy", -1e5), "features must be finite"),
    "huge kernel weight": (
        lambda method: DenseCRF(3, kernels=(Gaussian(weight=3e38),), method=method),
        "weight must be finite and at most",
    ),
    "huge compat": (
        lambda method: DenseCRF(3, kernels=(Gaussian(compat=[[3e38] * 3] * 3),), compatibility="matrix", method=method),
        "compat must be finite and at most",
    ),
}


@pytest.mark.filterwarnings("ignore:image lies in")
@pytest.mark.parametrize("method", ["exact", "lattice"])
@pytest.mark.parametrize("case", CASES)
def test_numbers_that_are_not_finite_are_refused(case: str, method: str) -> None:
    call, message = CASES[case]
    with pytest.raises(ValueError, match=message):
        call(method)
