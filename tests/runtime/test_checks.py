"""Odd numbers for every number that the public API takes: they work, or an error names the argument."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplab_crf import (
    Bilateral,
    Gaussian,
    ImageCRF,
    MeanField,
    PairwiseKernel,
    PermutohedralLattice,
    dense_crf,
    load_preset,
)
from deeplab_crf.pydensecrf import densecrf, utils

HUGE = 10**5000  # Python refuses to print it
ODD: tuple[Any, ...] = (
    True, np.True_, -1, 2**31, 2**63, 10**400, HUGE, -HUGE, 2.5, float("nan"), float("inf"), 3e38, 1e39, 1e300, np.int8(-3),
    np.float64("nan"), np.array([3]), Fraction(10**400), Decimal("NaN"), Decimal("1e999"), "3", b"3", "", None, [], {}, 3j,
    np.complex64(3), np.ma.masked, object(), float,
)  # fmt: skip

IMAGE, SCORES, LABELS = np.zeros((6, 8, 3), np.uint8), np.zeros((3, 6, 8)), np.zeros((6, 8), int)
FEATURES, UNARY = np.zeros((2, 48)), np.zeros((3, 48))


def refine(**arguments: Any) -> Any:
    return dense_crf(IMAGE, **({"logits": SCORES} | arguments))


def of_labels(**arguments: Any) -> Any:
    return dense_crf(IMAGE, labels=LABELS, **({"num_labels": 2} | arguments))


def with_kernel(kernel: Any) -> Any:
    return dense_crf(IMAGE, logits=SCORES, kernels=[kernel])


def model() -> MeanField:
    result = MeanField(48, 3)
    result.add_kernel(FEATURES, 1.0)
    return result


def drop_in() -> densecrf.DenseCRF2D:
    result = densecrf.DenseCRF2D(8, 6, 3)
    result.setUnaryEnergy(UNARY)
    return result


def few(number: Any) -> Any:
    """Counts of labels beyond a thousand ask for tables that are another test's business."""
    return 1 if isinstance(number, int) and 1000 < number < 2**31 else number


CALLS: dict[str, Callable[[Any], object]] = {
    "iterations": lambda odd: refine(iterations=few(odd)),
    "damping": lambda odd: refine(damping=odd),
    "tolerance": lambda odd: refine(tolerance=odd),
    "threads": lambda odd: refine(threads=odd),
    "dtype": lambda odd: refine(dtype=odd),
    "kernels": lambda odd: refine(kernels=odd),
    "kernels ": lambda odd: refine(kernels=[odd]),
    "preset": lambda odd: refine(preset=odd),
    "normalization": lambda odd: refine(normalization=odd),
    "device": lambda odd: refine(device=odd),
    "num_labels": lambda odd: of_labels(num_labels=few(odd)),
    "confidence": lambda odd: of_labels(confidence=odd),
    "ignore_label": lambda odd: of_labels(ignore_label=odd),
    "sxy": lambda odd: with_kernel(Gaussian(sxy=odd)),
    "sxy ": lambda odd: with_kernel(Gaussian(sxy=(odd, 3))),
    "weight": lambda odd: with_kernel(Gaussian(weight=odd)),
    "compat": lambda odd: with_kernel(Gaussian(compat=odd)),
    "srgb": lambda odd: with_kernel(Bilateral(srgb=odd)),
    "compat ": lambda odd: with_kernel(PairwiseKernel(FEATURES, compat=odd)),
    "features": lambda odd: with_kernel(PairwiseKernel(odd)),
    "shape": lambda odd: ImageCRF(None, 3, shape=odd, kernels=[Gaussian()]),
    "shape ": lambda odd: ImageCRF(None, 3, shape=(few(odd), 2), kernels=[Gaussian()]),
    "num_points": lambda odd: MeanField(few(odd), 3),
    "num_labels ": lambda odd: MeanField(48, odd),
    "order": lambda odd: MeanField(1, 3, order=[odd]),  # type: ignore[arg-type, list-item]
    "compat  ": lambda odd: model().add_kernel(FEATURES, odd),
    "iterations ": lambda odd: model().inference(UNARY, few(odd)),
    "threads ": lambda odd: PermutohedralLattice(FEATURES.T, threads=odd),
    "nvar": lambda odd: densecrf.DenseCRF(few(odd), 3),
    "niter": lambda odd: drop_in().inference(few(odd)),
    "sxy  ": lambda odd: drop_in().addPairwiseGaussian(odd, 3),
    "compat   ": lambda odd: drop_in().addPairwiseGaussian(3, odd),
    "srgb ": lambda odd: drop_in().addPairwiseBilateral(3, odd, IMAGE, 3),
    "gt_prob": lambda odd: utils.unary_from_labels(LABELS, 2, odd, zero_unsure=False),
    "n_labels": lambda odd: utils.unary_from_labels(LABELS, few(odd), 0.7, zero_unsure=False),
    "scale": lambda odd: utils.unary_from_softmax(np.full((2, 3), 0.5), scale=odd),
}


@pytest.mark.parametrize("argument", CALLS)
def test_odd_numbers_work_or_are_named(argument: str) -> None:
    for odd in ODD:
        check(CALLS[argument], argument.strip(), odd)


def check(call: Callable[[Any], object], argument: str, odd: Any) -> None:
    try:
        result = call(odd)
    except (ValueError, TypeError) as error:
        text = str(error)
    else:
        text = f"{argument} was taken"
        assert not isinstance(result, np.ndarray) or np.isfinite(result).all(), type(odd)
    assert argument in text, (type(odd), text)
    assert len(text) < 600, text
    assert "0x" not in text.replace("object at 0x", ""), text


@pytest.mark.parametrize("label", [255, np.uint8(255), np.int64(255), -1, 300, 2**40, None])
def test_an_ignored_label_of_any_whole_number(label: Any) -> None:
    labels = LABELS.astype(np.uint8)
    labels[-1, -1] = 1
    labels[0, 0] = 255 if label is not None and int(label) == 255 else 1
    assert dense_crf(IMAGE, labels=labels, num_labels=2, ignore_label=label).shape == (2, 6, 8)


PRESET = """
name = "mine"
iterations = {iterations}
normalization = "after"
[[kernels]]
type = "gaussian"
sxy = {sxy}
weight = {weight}
"""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": "99999999999999999999"}, r"iterations must be a whole number in \[0, 2147483647\]; got 9999"),
        ({"iterations": "[[3]]"}, r"iterations must be a whole number >= 0; got \[\[3\]\]"),
        ({"weight": "1" + "0" * 400}, r"kernels\[0\]: weight must fit a float"),
        ({"weight": "3e38"}, r"kernels\[0\]: weight must be finite and at most 1e\+18"),
        ({"weight": "[[3]]"}, r"kernels\[0\]: weight must be a number; got \[\[3\]\]"),
        ({"sxy": "[[3]]"}, r"kernels\[0\]: sxy must be a number or a list of numbers; got \[\[3\]\]"),
        ({"sxy": "[3, [3]]"}, r"kernels\[0\]: sxy must be a number or a list of numbers"),
        ({"sxy": "1" + "0" * 400}, r"kernels\[0\]: sxy must fit a float"),
        ({"sxy": "1e39"}, r"kernels\[0\]: sxy must be positive and finite in float32"),
    ],
)
def test_odd_numbers_in_a_preset_file(changes: dict[str, str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(PRESET.format(**{"iterations": 5, "sxy": 3, "weight": 3, **changes}))
    with pytest.raises(ValueError, match=message):
        load_preset(path)


MASK = np.zeros((6, 8), bool)
MASK[0, 0] = True
MASKED: dict[str, Callable[[], object]] = {
    "labels": lambda: dense_crf(IMAGE, labels=np.ma.array(LABELS, mask=MASK), num_labels=2),
    "logits": lambda: refine(logits=np.ma.array(SCORES, mask=[MASK] * 3)),
    "image": lambda: dense_crf(np.ma.array(IMAGE, mask=np.dstack([MASK] * 3)), logits=SCORES),
    "features": lambda: with_kernel(PairwiseKernel(np.ma.array(FEATURES, mask=[MASK.ravel()] * 2))),
    "compat": lambda: with_kernel(PairwiseKernel(FEATURES, np.ma.array(np.ones(3), mask=[1, 0, 0]))),
    "unary": lambda: model().inference(np.ma.array(UNARY, mask=[MASK.ravel()] * 3), 2),
    "values": lambda: PermutohedralLattice(FEATURES.T).filter(np.ma.array(np.ones(48), mask=MASK.ravel())),
    "u": lambda: drop_in().setUnaryEnergy(np.ma.array(UNARY, mask=[MASK.ravel()] * 3)),
    "rgbim": lambda: drop_in().addPairwiseBilateral(3, 3, np.ma.array(IMAGE, mask=np.dstack([MASK] * 3)), 3),
    "sm": lambda: utils.unary_from_softmax(np.ma.array(np.full((2, 3), 0.5), mask=[[1, 0, 0]] * 2)),
    "image ": lambda: dense_crf([np.ma.array(IMAGE, mask=np.dstack([MASK] * 3))], logits=SCORES[None]),
}


@pytest.mark.parametrize("argument", MASKED)
def test_masked_values_are_refused(argument: str) -> None:
    with pytest.raises(ValueError, match=rf"^{argument.strip()} must not hold masked values; got .*\.filled\(value\)"):
        MASKED[argument]()


def test_a_masked_array_without_masked_values_is_an_array() -> None:
    np.testing.assert_array_equal(refine(logits=np.ma.array(SCORES)), refine())
