"""The table of bad inputs: each is refused by name, with what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import samples
from dense_crf_errors import DENSE_CRF, changed, with_good_arguments

import deeplab_crf
from deeplab_crf import Bilateral, Gaussian, MeanField, PermutohedralLattice, dense_crf

POINTS, LABELS = 60, 4
FEATURES = samples.features(POINTS, 3).T
UNARY = samples.energies(LABELS, POINTS)

Case = tuple[Callable[[], object], str]


def engine() -> MeanField:
    """A model with one kernel."""
    result = MeanField(POINTS, LABELS)
    result.add_kernel(FEATURES, 1.0)
    return result


def infer(**arguments: Any) -> object:
    """inference with good arguments but for those given."""
    return engine().inference(**{"unary": UNARY, "iterations": 2, **arguments})


def add(features: Any = FEATURES, compat: Any = 1.0, **arguments: Any) -> object:
    """add_kernel with good arguments but for those given."""
    return engine().add_kernel(features, compat, **arguments)


def far_features() -> object:
    features = FEATURES.copy()
    features[1, 7] = 1e30
    return add(features)


MODEL: dict[str, Case] = {
    "no points": (lambda: MeanField(0, 3), "num_points.*0"),
    "negative points": (lambda: MeanField(-5, 3), "num_points.*-5"),
    "no labels": (lambda: MeanField(5, 0), "num_labels.*0"),
    "half precision": (lambda: MeanField(5, 3, dtype=np.float16), "dtype.*float32.*float64"),
    "integer type": (lambda: MeanField(5, 3, dtype=np.int32), "dtype.*float32.*float64"),
    "no threads": (lambda: MeanField(5, 3, threads=0), "threads.*0"),
    "features of another size": (lambda: add(FEATURES[:, :-1]), "features.*60.*59"),
    "features (N, d)": (lambda: add(FEATURES.T), "features.*60"),
    "lattice of another size": (lambda: add(PermutohedralLattice(FEATURES.T[:-1])), "features.*60.*59"),
    "NaN feature": (lambda: add(changed(FEATURES, np.nan, (1, 7))), "features.*(nan|finite)"),
    "infinite feature": (lambda: add(changed(FEATURES, np.inf, (1, 7))), "features.*(inf|finite)"),
    "feature too large": (far_features, "features"),
    "compat too long": (lambda: add(compat=np.ones(LABELS + 1)), "compat.*4.*5"),
    "compat one long": (lambda: add(compat=np.ones(1)), "compat.*4.*1"),
    "compat not square": (lambda: add(compat=np.ones((LABELS, LABELS + 1))), r"compat.*4.*\(4, 5\)"),
    "compat of three axes": (lambda: add(compat=np.ones((2, 2, 2))), r"compat.*\(2, 2, 2\)"),
    "NaN compat": (lambda: add(compat=np.nan), "compat.*(nan|finite)"),
    "NaN in compat": (lambda: add(compat=changed(np.eye(LABELS), np.nan, (1, 2))), "compat.*(nan|finite)"),
    "compat of text": (lambda: add(compat="potts"), "compat"),
    "unknown normalization": (lambda: add(normalization="mean"), "normalization.*none.*symmetric.*'mean'"),
    "normalization is a number": (lambda: add(normalization=3), "normalization.*symmetric.*3"),
}

INFERENCE: dict[str, Case] = {
    "unary of another size": (lambda: infer(unary=UNARY[:, :-1]), r"unary.*\(4, 60\).*\(4, 59\)"),
    "unary transposed": (lambda: infer(unary=UNARY.T), r"unary.*\(4, 60\).*\(60, 4\)"),
    "unary of three axes": (lambda: infer(unary=UNARY.reshape(LABELS, 6, 10)), r"unary.*\(4, 60\).*\(4, 6, 10\)"),
    "NaN unary": (lambda: infer(unary=changed(UNARY, np.nan, (1, 7))), "unary.*(nan|finite).*1.*7"),
    "packed NaN unary": (lambda: infer(unary=np.asfortranarray(changed(UNARY, np.nan, (1, 7)))), "unary.*(nan|finite)"),
    "no label left": (
        lambda: infer(unary=changed(UNARY, np.inf, (slice(None), 7))),
        "unary must be finite for at least one label of each pixel; got inf for all labels, point 7",
    ),
    "no label left, packed": (
        lambda: infer(unary=np.asfortranarray(changed(UNARY, np.inf, (slice(None), 7)))),
        "unary must be finite for at least one label.*point 7",
    ),
    "minus infinite unary": (lambda: infer(unary=changed(UNARY, -np.inf, (1, 7))), "unary.*(inf|finite)"),
    "unary too large for float32": (lambda: infer(unary=changed(UNARY.astype(float), 1e39, (1, 7))), "unary"),
    "complex unary": (lambda: infer(unary=UNARY.astype(np.complex64)), "unary"),
    "text unary": (lambda: infer(unary=np.full(UNARY.shape, "a")), "unary"),
    "negative iterations": (lambda: infer(iterations=-1), "iterations.*-1"),
    "fractional iterations": (lambda: infer(iterations=2.5), "iterations.*2.5"),
    "damping of one": (lambda: infer(damping=1.0), r"damping.*1"),
    "negative damping": (lambda: infer(damping=-0.1), r"damping.*-0.1"),
    "NaN damping": (lambda: infer(damping=np.nan), "damping.*nan"),
    "negative tolerance": (lambda: infer(tolerance=-1e-3), "tolerance.*-0.001"),
    "NaN tolerance": (lambda: infer(tolerance=np.nan), "tolerance.*nan"),
    "q of another size": (lambda: infer(q=np.ones((LABELS, 7))), r"\bq\b.*\(4, 60\).*\(4, 7\)"),
    "NaN q": (lambda: infer(q=changed(UNARY, np.nan, (1, 7))), r"\bq\b.*(nan|finite)"),
    "energy, unary": (lambda: engine().energy(UNARY[:, :-1], UNARY), r"unary.*\(4, 60\).*\(4, 59\)"),
    "energy, q": (lambda: engine().energy(UNARY, UNARY[:, :-1]), r"\bq\b.*\(4, 60\).*\(4, 59\)"),
}

KERNELS: dict[str, Case] = {
    "sxy zero": (lambda: Gaussian(sxy=0), "sxy.*positive.*0"),
    "sxy negative": (lambda: Gaussian(sxy=(3, -1)), "sxy.*positive"),
    "sxy NaN": (lambda: Bilateral(sxy=np.nan), "sxy.*positive.*nan"),
    "sxy infinite": (lambda: Bilateral(sxy=np.inf), "sxy.*finite"),
    "sxy of three": (lambda: Gaussian(sxy=(1, 2, 3)).widths_xy, "sxy.*2.*3"),
    "srgb zero": (lambda: Bilateral(srgb=0), "srgb.*positive"),
    "srgb negative": (lambda: Bilateral(srgb=(13, 13, -13)), "srgb.*positive"),
    "srgb text": (lambda: Bilateral(srgb="wide"), "srgb.*wide"),  # type: ignore[arg-type]
    "weight NaN": (lambda: Gaussian(weight=np.nan), "weight.*finite"),
    "normalization": (lambda: Bilateral(normalization="mean"), "normalization.*'mean'"),
}

THREADS: dict[str, Case] = {
    "zero": (lambda: deeplab_crf.set_num_threads(0), "threads|n.*0"),
    "negative": (lambda: deeplab_crf.set_num_threads(-2), "-2"),
    "fraction": (lambda: deeplab_crf.set_num_threads(1.5), "1.5|integer"),  # type: ignore[arg-type]
}

TABLES = {"model": MODEL, "inference": INFERENCE, "kernels": KERNELS, "threads": THREADS}
ROWS = [pytest.param(table[row], id=f"{name}: {row}") for name, table in TABLES.items() for row in table]
ROWS += [
    pytest.param((partial(call, with_good_arguments(dense_crf)), match), id=f"dense_crf: {row}")
    for row, (call, match) in DENSE_CRF.items()
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("case", ROWS)
def test_bad_input(case: Case) -> None:
    call, match = case
    with pytest.raises((ValueError, TypeError), match=f"(?is){match}"):
        call()


def test_a_refused_kernel_leaves_the_model_as_it_was() -> None:
    model = engine()
    want = model.inference(UNARY, 3).probabilities
    for compat in (np.ones(7), np.nan):
        with pytest.raises(ValueError, match="compat"):
            model.add_kernel(FEATURES, compat)
    np.testing.assert_array_equal(model.inference(UNARY, 3).probabilities, want)


def test_a_refused_unary_leaves_the_model_as_it_was() -> None:
    model = engine()
    want = model.inference(UNARY, 3).probabilities
    with pytest.raises(ValueError, match="unary"):
        model.inference(changed(UNARY, np.nan, (0, 0)), 3)
    np.testing.assert_array_equal(model.inference(UNARY, 3).probabilities, want)
