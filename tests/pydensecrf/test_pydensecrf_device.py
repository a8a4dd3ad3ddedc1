"""The drop-in on a device: the same answers as on the CPU and as the oracle's, from the same calls; and `set_device`.

Where there is no CUDA device, its code runs on the CPU's tensors instead, with the CPU's kernels and with those of CUDA, emulated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import oracle
import pytest
import samples
from devices import Device

import deeplab_crf.pydensecrf.densecrf as dcrf
from deeplab_crf.core.mean_field import MeanField
from deeplab_crf.crf.device_mean_field import DeviceMeanField
from deeplab_crf.pydensecrf import _device, set_device

LABELS = 4
MATRIX = np.random.default_rng(5).normal(-0.5, 1.0, (LABELS, LABELS)).astype(np.float32)
COMPATS: dict[str, Any] = {"number": 3, "vector": np.linspace(-3, -1, LABELS), "matrix": MATRIX}
# Numbers of points that leave one, two, three and no places in pydensecrf's last block of four.
SIZES = [(15, 17), (15, 18), (17, 15), (16, 13)]


@pytest.fixture(autouse=True)
def cpu_afterwards() -> Iterator[None]:
    """Leaves the drop-in as it was."""
    yield
    set_device("cpu")


@pytest.fixture
def chosen(device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    """CRFs of `_on_device` run there."""
    if device.name != "cuda":
        monkeypatch.setattr(_device, "find_device", lambda name: None if name == "cpu" else device.where)
    return device


def _both(make: Any) -> tuple[Any, Any]:
    """What ``make()`` gives on the device, and on the CPU."""
    set_device("cuda")
    on_device = make()
    set_device("cpu")
    on_cpu = make()
    assert isinstance(on_device._mean_field, DeviceMeanField)
    assert isinstance(on_cpu._mean_field, MeanField)
    return on_device, on_cpu


def _image_crf(size: tuple[int, int], compat: Any = 5, mode: int = dcrf.NORMALIZE_SYMMETRIC) -> dcrf.DenseCRF2D:
    height, width = size
    crf = dcrf.DenseCRF2D(width, height, LABELS)
    crf.setUnaryEnergy(samples.energies(LABELS, height * width))
    crf.addPairwiseGaussian(3, 3)
    crf.addPairwiseBilateral(30, 13, samples.photo(height, width), compat, normalization=mode)
    return crf


def _sparse(points: int) -> Any:
    """Features (N, 3) near the origin with gaps between them: in some, the vertices around zero features are steps of a blur."""
    return np.asarray(np.random.default_rng(0).normal(size=(points, 3)) * 1.5, np.float32)


def _points_crf(points: int, mode: int = dcrf.NORMALIZE_SYMMETRIC) -> dcrf.DenseCRF:
    crf = dcrf.DenseCRF(points, LABELS)
    crf.setUnaryEnergy(samples.energies(LABELS, points))
    crf.addPairwiseEnergy(_sparse(points).T, 2, normalization=mode)
    return crf


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("iterations", [0, 1, 5])
@pytest.mark.parametrize("size", SIZES)
def test_photographs(size: tuple[int, int], iterations: int) -> None:
    crf, want = _both(lambda: _image_crf(size))
    got = crf.inference(iterations)
    assert got.dtype == np.float32
    assert got.flags.f_contiguous
    assert samples.scaled_error(got, want.inference(iterations)) <= 1e-5


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("mode", list(dcrf.NormalizationType))
@pytest.mark.parametrize("points", [37, 40, 1, 2, 6])
def test_points(points: int, mode: dcrf.NormalizationType) -> None:
    crf, on_cpu = _both(lambda: _points_crf(points, mode))
    name = {0: "none", 1: "before", 2: "after", 3: "symmetric"}[mode]
    got = crf.inference(2)
    assert samples.scaled_error(got, _judged(points, name, padded=points % 4 != 0)) <= 1e-5
    assert samples.scaled_error(got, on_cpu.inference(2)) <= 1e-5


def _judged(points: int, mode: str, *, padded: bool) -> Any:
    """The oracle's answer to `_points_crf` after two iterations. padded: with the vertices around zero features."""
    lattice = oracle.Lattice(_sparse(points), np.float32, touch_origin=padded)
    return oracle.MeanField(samples.energies(LABELS, points), [(lattice, 2.0, mode)]).run(2)


@pytest.mark.parametrize("points", [37, 2, 6])
def test_padding_shows_in_these_points(points: int) -> None:
    """Or `test_points` would say nothing about it."""
    without, padded = (_judged(points, "symmetric", padded=padded) for padded in (False, True))
    assert samples.scaled_error(without, padded) > 1e-3


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("kind", COMPATS)
def test_compatibilities(kind: str) -> None:
    crf, want = _both(lambda: _image_crf((15, 17), COMPATS[kind]))
    assert samples.scaled_error(crf.inference(3), want.inference(3)) <= 1e-5


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("kind", COMPATS)
@pytest.mark.parametrize("size", SIZES[-2:])
def test_steps_and_divergence(size: tuple[int, int], kind: str) -> None:
    crf, want = _both(lambda: _image_crf(size, COMPATS[kind]))
    q, first, second = crf.startInference()
    assert samples.scaled_error(q, want.startInference()[0]) <= 1e-6
    view = q[:2]
    for _ in range(3):
        crf.stepInference(q, first, second)
        assert crf.klDivergence(q) == pytest.approx(want.klDivergence(q), rel=1e-5)
    assert samples.scaled_error(q, crf.inference(3)) <= 1e-6
    assert np.shares_memory(view, q)
    other = np.random.default_rng(3).dirichlet(np.ones(LABELS), q.shape[1]).T  # float64, of another layout
    expected = np.array(other)
    crf.stepInference(other)
    want.stepInference(expected)
    assert samples.scaled_error(other, expected) <= 1e-5


@pytest.mark.usefixtures("chosen")
def test_without_kernels_or_unary() -> None:
    crf, _ = _both(lambda: dcrf.DenseCRF2D(5, 3, LABELS))
    np.testing.assert_allclose(crf.inference(2), 0.25)
    assert not crf.startInference()[0].any()
    crf.addPairwiseGaussian(2, 3)
    np.testing.assert_allclose(crf.inference(2), 0.25, rtol=1e-6)
    assert np.isfinite(crf.klDivergence(np.full((LABELS, 15), 0.25)))


@pytest.mark.usefixtures("chosen")
def test_new_unaries_on_kept_lattices() -> None:
    crf, _ = _both(lambda: _image_crf((15, 17)))
    first = np.array(crf.inference(3))
    crf.setUnaryEnergy(samples.energies(LABELS, 15 * 17, seed=1))
    assert samples.scaled_error(crf.inference(3), first) > 1e-3
    crf.setUnaryEnergy(samples.energies(LABELS, 15 * 17))
    np.testing.assert_array_equal(crf.inference(3), first)


@pytest.mark.usefixtures("chosen")
def test_bad_input_is_refused_as_on_the_cpu() -> None:
    crf, _ = _both(lambda: _image_crf((15, 17)))
    with pytest.raises(ValueError, match=r"niter.*-1"):
        crf.inference(-1)
    with pytest.raises(ValueError, match=r"Q.*\(4, 255\).*\(4, 254\)"):
        crf.klDivergence(np.zeros((LABELS, 254)))
    with pytest.raises(ValueError, match=r"compat.*4"):
        crf.addPairwiseGaussian(3, np.ones(3))
    with pytest.raises(ValueError, match="features"):
        crf.addPairwiseEnergy(np.full((2, 255), 1e30), 3)


def test_a_crf_stays_where_it_was_made(chosen: Device) -> None:
    on_cpu = _image_crf((15, 17))
    set_device("cuda")
    assert isinstance(on_cpu._mean_field, MeanField)
    assert samples.scaled_error(_image_crf((15, 17)).inference(2), on_cpu.inference(2)) <= 1e-5


@pytest.mark.parametrize("name", ["gpu", "CUDA", "cuda:", "cuda:x", "cpu:0", ""])
def test_other_names_are_refused_and_change_nothing(name: str) -> None:
    with pytest.raises(ValueError, match=r'device must be "cpu", "cuda" or "cuda:N"; got'):
        set_device(name)
    assert isinstance(dcrf.DenseCRF(4, 2)._mean_field, MeanField)
