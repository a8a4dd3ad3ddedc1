"""Arrays that the caller, or another thread, changes after they were checked: no crash, and no effect where they were copied."""

from __future__ import annotations

import numpy as np
import pytest
import samples

from deeplab_crf import MeanField

POINTS = 300


def test_an_order_that_is_changed_later_has_no_effect() -> None:
    features, unary = samples.features(POINTS, 3).T, samples.energies(4, POINTS)
    order = np.random.default_rng(0).permutation(POINTS).astype(np.int32)
    model = MeanField(POINTS, 4, order=order)
    model.add_kernel(features, 2.0)
    want = model.inference(unary, 3).probabilities
    order[:] = 2**31 - 1
    np.testing.assert_array_equal(model.inference(unary, 3).probabilities, want)


@pytest.mark.parametrize("kind", [np.int64, np.uint16])
def test_an_order_of_any_integers_is_taken(kind: type[np.integer]) -> None:
    order = np.arange(POINTS)[::-1].astype(kind)
    assert MeanField(POINTS, 4, order=order)._order.dtype == np.int32  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (np.arange(5) + 0.5, "order must hold whole numbers; got dtype float64"),
        (np.ones(5, bool), "order must hold whole numbers; got dtype bool"),
        (np.arange(5) + 2**32, "order must be a permutation of 0..4"),
        ([2**31, 0, 1, 2, 3], "order must be a permutation of 0..4"),
        ([10**400, 0, 1, 2, 3], "order must be an array of real numbers"),
        ("abcde", "order must be an array of real numbers"),
        (3, r"order must be a permutation of 0..4; got shape \(\)"),
    ],
)
def test_what_is_no_order_is_refused(order: object, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        MeanField(5, 3, order=order)  # type: ignore[arg-type]


# Another thread writes all kinds of numbers to the features while lattices are built of them in place.
RACE = """
import sys, threading, time
import numpy as np
from deeplab_crf import MeanField, PermutohedralLattice
{setup}
good = features.copy()
stop = threading.Event()

def disturb():
    rng = np.random.default_rng(1)
    while not stop.is_set():
        for bad in (np.nan, np.inf, 1e30, -3e38):
            features[rng.integers(0, len(features), 2000), rng.integers(0, features.shape[1], 2000)] = bad
            features[:] = good

writer = threading.Thread(target=disturb)
writer.start()
end = time.monotonic() + 3
built = refused = 0
while time.monotonic() < end or built == 0:
    try:
        lattice = build(features)
        built += 1
    except ValueError as error:
        assert "features must" in str(error), error
        refused += 1
stop.set()
writer.join()
print("end")
"""


@pytest.mark.parametrize("dims", [2, 5, 7])
def test_features_that_change_during_the_build_do_not_crash(dims: int) -> None:
    setup = f"""
features = np.random.default_rng(0).normal(size=(40000, {dims})).astype(np.float32)
ones = np.ones(40000, np.float32)

def build(features):
    PermutohedralLattice(features, threads=2).filter(ones)
"""
    done = samples.run_python(RACE.format(setup=setup))
    assert (done.returncode, done.stdout.strip()) == (0, "end"), done.stderr


def test_tensors_that_change_during_the_build_do_not_crash() -> None:
    pytest.importorskip("torch")
    setup = """
import torch
from deeplab_crf.ops.lattice.operators import build_lattice

features = np.random.default_rng(0).normal(size=(40000, 5)).astype(np.float32)

def build(features):
    build_lattice(torch.from_numpy(features)[None]).filter(torch.ones(1, 40000, 1))
"""
    done = samples.run_python(RACE.format(setup=setup))
    assert (done.returncode, done.stdout.strip()) == (0, "end"), done.stderr
