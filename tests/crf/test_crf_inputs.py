"""What DenseCRF says to wrong arguments: the argument, what was expected, what came, the cure."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import samples
import torch
from crf_samples import here
from devices import Device

from deeplab_crf import Bilateral, DenseCRF, DenseCRFLoss, Gaussian, PairwiseKernel
from deeplab_crf.crf.diagnosis import diagnose, entropy, map_labels, marginals
from deeplab_crf.crf.filters import bilateral_filter, permutohedral_filter

pytestmark = pytest.mark.usefixtures("device")

LOGITS = here(torch.randn(2, 4, 6, 7, generator=torch.Generator("cpu").manual_seed(0), device="cpu"))
IMAGE = 255 * here(torch.rand(2, 3, 6, 7, generator=torch.Generator("cpu").manual_seed(1), device="cpu"))
MASK = torch.ones(2, 6, 7, dtype=torch.bool)


def _nan(tensor: torch.Tensor) -> torch.Tensor:
    bad = tensor.clone()
    bad[1, 2, 3, 4] = float("nan")
    return bad


CONSTRUCTION: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"kernels": ()}, ValueError, "kernels must hold at least one Gaussian or Bilateral; got none"),
    (
        {"kernels": [PairwiseKernel(np.zeros((3, 2)))]},
        TypeError,
        "Bilateral; got PairwiseKernel. Give features of your own as points",
    ),
    ({"kernels": [Gaussian((1, 2, 3))]}, ValueError, "sxy must be one number or 2 of them; got 3"),
    ({"kernels": [Bilateral(srgb=(1, 2))]}, ValueError, "srgb must be one number or 3 of them; got 2"),
    ({"normalization": "both"}, ValueError, "normalization must be one of none, before, after, symmetric; got 'both'"),
    ({"compatibility": "full"}, ValueError, "compatibility must be one of potts, diagonal, matrix; got 'full'"),
    (
        {"compatibility": "matrix", "num_classes": None},
        ValueError,
        "num_classes must be given with compatibility='matrix'",
    ),
    (
        {"trainable": ("weights", "sxy")},
        ValueError,
        "trainable must hold any of weights, compatibility, bandwidths; got ['sxy']",
    ),
    (
        {"trainable": "compatibility"},
        ValueError,
        'compatibility must be "diagonal" or "matrix" to be trainable; got "potts"',
    ),
    (
        {"kernels": [Gaussian(compat=-np.eye(4))]},
        ValueError,
        'must be "diagonal" or "matrix" for a kernel that brings its own compat',
    ),
    (
        {"kernels": [Gaussian(compat=-np.eye(3))], "compatibility": "matrix"},
        ValueError,
        "compat of a kernel must have shape (4,) or (4, 4) with num_classes=4 and compatibility='matrix'; got (3, 3)",
    ),
    (
        {"kernels": [Gaussian(compat=-np.eye(4))], "compatibility": "diagonal"},
        ValueError,
        "compat of a kernel must have shape (4,) with num_classes=4",
    ),
    ({"method": "brute"}, ValueError, "method must be one of lattice, exact; got 'brute'"),
    ({"gradients": "all"}, ValueError, "gradients must be one of store, recompute, implicit; got 'all'"),
    ({"iterations": -1}, ValueError, "iterations must be a whole number >= 0; got -1"),
    ({"iterations": 2.0}, ValueError, "iterations must be a whole number >= 0; got 2.0"),
    ({"num_classes": 0}, ValueError, "num_classes must be a whole number >= 1; got 0"),
    ({"spatial_dims": 0}, ValueError, "spatial_dims must be a whole number >= 1; got 0"),
    ({"channels": True}, ValueError, "channels must be a whole number >= 1; got True"),
    ({"damping": 1}, ValueError, "damping must be in [0, 1); got 1"),
    ({"tolerance": float("inf")}, ValueError, "tolerance must be finite and >= 0 (0: run all iterations); got inf"),
    ({"spacing": (1, 2, 3)}, ValueError, "spacing must hold 2 positive finite numbers (x, y); got (1, 2, 3)"),
    ({"spacing": (1, 0)}, ValueError, "spacing must hold 2 positive finite numbers (x, y); got (1, 0)"),
]


@pytest.mark.parametrize(
    ("options", "kind", "message"), CONSTRUCTION, ids=[message[:50] for *_, message in CONSTRUCTION]
)
def test_construction(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        DenseCRF(**{"num_classes": 4, **options})


CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"logits": LOGITS.cpu().numpy()},
        TypeError,
        "logits must be a torch.Tensor; got ndarray. Use deeplab_crf.dense_crf for NumPy",
    ),
    ({"logits": LOGITS.long()}, TypeError, "logits must be floating point; got torch.int64"),
    ({"logits": LOGITS[0, 0]}, ValueError, "logits must have shape (B, L, H, W), or (B, L, N) for points"),
    ({"logits": LOGITS[..., None]}, ValueError, "with spatial_dims=2; got (2, 4, 6, 7, 1)"),
    ({"logits": LOGITS[:0], "image": IMAGE[:0]}, ValueError, "logits must not be empty; got shape (0, 4, 6, 7)"),
    ({"logits": LOGITS[:, :3]}, ValueError, "the 4 labels of num_classes in dimension 1; got shape (2, 3, 6, 7)"),
    ({"logits": _nan(LOGITS)}, ValueError, "logits must be finite; got nan for label 2 of point 25 of image 1"),
    (
        {"logits": LOGITS.to("meta"), "image": IMAGE.to("meta")},
        ValueError,
        "logits must be on the device of the layer, cpu; got meta",
    ),
    ({"image": None}, ValueError, "image must be given for a Bilateral kernel; got None"),
    (
        {"image": IMAGE.cpu().numpy()},
        TypeError,
        "image must be a torch.Tensor; got ndarray. Convert it with torch.as_tensor",
    ),
    ({"image": IMAGE.to("meta")}, ValueError, "image must be on the device of logits, cpu; got meta. Move it"),
    ({"image": IMAGE > 3}, TypeError, "image must hold real numbers; got torch.bool"),
    (
        {"image": IMAGE[:, :, :5]},
        ValueError,
        "image must have shape (2, 3, 6, 7) to fit the logits; got (2, 3, 5, 7). Resize",
    ),
    ({"image": IMAGE.movedim(1, -1)}, ValueError, "got (2, 6, 7, 3). Bring channels first with .movedim(-1, 1)"),
    ({"image": IMAGE[:, :1]}, ValueError, "got (2, 1, 6, 7). Give channels=1 to the layer"),
    ({"image": IMAGE[:1]}, ValueError, "image must have shape (2, 3, 6, 7) to fit the logits; got (1, 3, 6, 7)"),
    ({"image": _nan(IMAGE)}, ValueError, "features must be finite; got nan"),
    (
        {"logits": LOGITS.flatten(2)},
        ValueError,
        "points must have shape (2, 42, 5) to fit the logits, (B, N, 2 coordinates and 3 channels)",
    ),
    ({"logits": LOGITS.flatten(2), "image": None}, ValueError, "image must be given for points; got None"),
    (
        {"mask": MASK.float()},
        TypeError,
        "mask must be a torch.Tensor of bool, True for real pixels; got torch.float32. Convert",
    ),
    (
        {"logits": LOGITS[:, :, None], "image": IMAGE[:, :, None]},
        ValueError,
        "with spatial_dims=2; got (2, 4, 1, 6, 7). Volumes need spatial_dims=3",
    ),
    ({"mask": MASK[:, :5]}, ValueError, "mask must have shape (2, 6, 7) to fit the logits; got (2, 5, 7)"),
    ({"mask": MASK.to("meta")}, ValueError, "mask must be on the device of logits, cpu; got meta"),
    (
        {"spacing": (1, 1, 1)},
        ValueError,
        "spacing must hold 2 numbers (x, y), or one row of them an image; got shape (3,)",
    ),
]


@pytest.mark.cpu_only  # its tensors are made before the device is known
@pytest.mark.parametrize(("changes", "kind", "message"), CALLS, ids=[message[:50] for *_, message in CALLS])
def test_calls(changes: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        DenseCRF(4)(**{"logits": LOGITS, "image": IMAGE, **changes})


@pytest.mark.cpu_only  # its tensors are made before the device is known
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (IMAGE / 255, r"got float32 with values in 0\.0.*\.\.0\.9.*Give image_range=\(0, 1\) to map"),
        ((IMAGE / 255 - 0.45) / 0.22, r"got float32 with values in -1\.9.*undo that"),
        (16 * IMAGE, r"got float32 with values in .*\.\.40.*to map it to 0\.\.255, or image_range=\(0, 255\) to take"),
        (
            (16 * IMAGE).to(torch.uint16),
            r"got uint16.*Give image_range=\(0, 4095\), image_range=\(0, 65535\) for 16 bits, to",
        ),
        ((16 * IMAGE).to(torch.int16) - 1000, r"got int16 with values in -9.*Give image_range=\(-9.*, 3"),
        (IMAGE > 100, "image must hold real numbers; got torch.bool"),
    ],
)
def test_an_image_in_the_wrong_range_is_refused(image: torch.Tensor, message: str) -> None:
    crf = DenseCRF(4)
    for _ in range(2):
        with pytest.raises((ValueError, TypeError), match=message):
            crf(LOGITS, image)


@pytest.mark.parametrize("method", ["lattice", "exact"])
@pytest.mark.parametrize("padding", [1e4, -1000.0, 255.0, float("nan"), float("inf")])
def test_pixels_outside_the_mask_do_not_tell_the_range(padding: float, method: str) -> None:
    """Padding neither makes an image unclear nor hides that it is in 0..1."""
    logits, image, mask = here(LOGITS), here(IMAGE), here(torch.ones(2, 6, 7, dtype=torch.bool))
    mask[:, :, 5:] = False
    padded = image.masked_fill(~mask[:, None], padding)
    crf = DenseCRF(4, method=method)
    torch.testing.assert_close(crf(logits, padded, mask), crf(logits, image, mask), rtol=0, atol=0)
    points = torch.cat([here(torch.zeros(2, 42, 2)), padded.flatten(2).transpose(1, 2)], dim=2)
    assert torch.isfinite(crf(logits.flatten(2), points, mask.flatten(1))).all()
    dark, dark_points = padded / 255, torch.cat([points[..., :2], points[..., 2:] / 255], dim=2)
    for arguments in ((logits, dark, mask), (logits.flatten(2), dark_points, mask.flatten(1))):
        with pytest.raises(ValueError, match=r"image must be in 0\.\.255.*with values in 0\.\d+\.\.0\.\d+"):
            DenseCRF(4, method=method)(*arguments)
    nothing = torch.zeros_like(mask)
    torch.testing.assert_close(crf(logits, padded / 255, nothing), torch.log_softmax(logits, dim=1))


def test_a_given_range_is_mapped_to_0_255() -> None:
    want = DenseCRF(4)(LOGITS, IMAGE)
    for image, given in (
        (IMAGE / 255, (0, 1)),
        ((IMAGE * 100).round().to(torch.int32), (0, 25500)),
        (IMAGE - 1000, (-1000, -745)),
    ):
        for got in (
            DenseCRF(4, image_range=given)(LOGITS, image),
            DenseCRF(4)(LOGITS, image, image_range=given),
            DenseCRF(4, image_range=(0, 7))(LOGITS, image, image_range=given),
            DenseCRF.from_preset("pydensecrf", 4, image_range=given)(LOGITS, image),
        ):
            assert samples.scaled_error(got, want) <= 2e-3
    assert torch.equal(DenseCRF(4, image_range=(0, 255))(LOGITS, IMAGE), want)
    with pytest.raises(ValueError, match=r"image_range must be \(low, high\).*got \(1, 1\)"):
        DenseCRF(4, image_range=(1, 1))


def test_the_range_of_the_channels_of_points() -> None:
    """Coordinates are no colours: their range does not matter, and they are not mapped."""
    points = torch.cat([torch.rand(1, 42, 2) * 3000, IMAGE[:1].flatten(2).transpose(1, 2)], dim=2)
    small = torch.cat([points[..., :2], points[..., 2:] / 255], dim=2)
    logits = LOGITS[:1].flatten(2)
    with pytest.raises(ValueError, match=r"image must be in 0\.\.255"):
        DenseCRF(4)(logits, small)
    got = DenseCRF(4, image_range=(0, 1))(logits, small)
    assert samples.scaled_error(got, DenseCRF(4)(logits, points)) <= 2e-3


@pytest.mark.cpu_only  # its tensors are made before the device is known
@pytest.mark.parametrize(
    ("kernel", "image"),
    [
        (Bilateral(3, 0.1), IMAGE / 255),
        (Bilateral(3, 13), IMAGE),
        (Bilateral(3, 13), IMAGE.byte()),
        (Bilateral(3, 13), (IMAGE / 255).byte()),
        (Gaussian(3), IMAGE / 255),
        (Bilateral(3, 13), torch.zeros_like(IMAGE)),
        (Bilateral(3, 13), torch.full_like(IMAGE, 0.3)),
        (Bilateral(3, (13, 13, 0.05)), IMAGE / 255),
        (Bilateral(3, 1300), IMAGE * 100),
        (Bilateral(3, 13), (IMAGE - 128) * 1.15 + 128),
        (Bilateral(3, 13), IMAGE.half()),
        (Bilateral(3, 13), IMAGE.to(torch.int16)),
        (Bilateral(3, 13), IMAGE.to(torch.uint16)),
        (Bilateral(3, 13), IMAGE.to(torch.uint32)),
    ],
)
def test_no_error_where_the_range_fits(kernel: Gaussian | Bilateral, image: torch.Tensor) -> None:
    DenseCRF(4, (kernel,))(LOGITS, image)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_detection_finds_nan_in_exact_mode_too() -> None:
    with torch.autograd.detect_anomaly(check_nan=True), pytest.raises(ValueError, match="logits must be finite"):
        DenseCRF(4, method="exact")(_nan(LOGITS), IMAGE)


def test_diverged_parameters_are_refused(device: Device) -> None:
    crf = DenseCRF(4, trainable=("weights", "bandwidths"))
    cases = [(crf.weights, "compatibilities must be finite"), (crf.log_sxy, "features must be finite")]
    if device.name == "emulated":  # the layer looks at the weights of CUDA tensors, the CPU's operator at its own
        del cases[0]
    for parameter, message in cases:
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter[0] = float("nan")
        with pytest.raises(ValueError, match=message):
            crf(LOGITS, IMAGE)
        with torch.no_grad():
            parameter.copy_(kept)


def test_training_with_damping_needs_the_implicit_gradient() -> None:
    for damping, tolerance in ((0.5, 0.0), (0.0, 1e-3)):
        crf = DenseCRF(4, damping=damping, tolerance=tolerance, trainable=("weights",))
        with torch.no_grad():
            crf(LOGITS, IMAGE)
        with pytest.raises(
            ValueError, match=r'gradients must be "implicit" with damping or a tolerance; got \'store\''
        ):
            crf(LOGITS, IMAGE)
        crf.gradients = "implicit"
        crf(LOGITS, IMAGE).sum().backward()


def test_without_torch_the_name_says_what_to_install() -> None:
    script = """
import sys
sys.modules["torch"] = None
import deeplab_crf
for name in ("DenseCRF", "DenseCRFLoss", "permutohedral_filter"):
    try:
        getattr(deeplab_crf, name)
    except ImportError as error:
        print(error)
"""
    done = samples.run_python(script)
    assert done.stdout.count('needs torch, which is not installed: pip install "deeplab-crf[torch]"') == 3, done.stderr


def test_what_has_no_batch_dimension() -> None:
    with pytest.raises(
        ValueError, match=r"points must.*One image needs a batch dimension: logits\[None\], image\[None\]"
    ):
        DenseCRF()(LOGITS[0, :3], IMAGE[0])
    with pytest.raises(
        ValueError, match=r"One volume needs a batch dimension, logits\[None\]; images need spatial_dims=2"
    ):
        DenseCRF(4, spatial_dims=3)(LOGITS, IMAGE)


@pytest.mark.parametrize("call", [DenseCRF(), DenseCRF(method="exact"), marginals, map_labels, entropy])
def test_a_single_label_is_refused(call: Any) -> None:
    """It has probability 1 everywhere; logits before a sigmoid look so."""
    arguments = (LOGITS[:, :1], IMAGE) if isinstance(call, DenseCRF) else (LOGITS[:, :1],)
    with pytest.raises(
        ValueError, match=r"logits must have 2 labels or more in dim.*\(2, 1, 6, 7\).*torch\.cat\(\[torch\.zeros"
    ):
        call(*arguments)


def test_arrays_are_refused_by_name() -> None:
    array = np.ones((1, 3, 6, 7), np.float32)
    maps = here(torch.from_numpy(array))
    for name, call in (
        ("logits", lambda: marginals(array)),
        ("logits", lambda: map_labels(array)),
        ("logits", lambda: diagnose(DenseCRF(), array, maps)),
        ("values", lambda: permutohedral_filter(array[0, 0], maps[0, 0])),
        ("features", lambda: permutohedral_filter(maps[0, 0], array[0, 0])),
        ("values", lambda: bilateral_filter(array, maps, 3, 3)),
        ("guide", lambda: bilateral_filter(maps, array, 3, 3)),
        ("known", lambda: bilateral_filter(maps, maps, 3, 3, known=array[:, 0])),
    ):
        with pytest.raises(TypeError, match=f"{name} must be a torch.Tensor; got ndarray"):
            call()
    for name, call in (
        ("guide", lambda: bilateral_filter(maps, maps.to("meta"), 3, 3)),
        ("known", lambda: bilateral_filter(maps, maps, 3, 3, known=maps[:, 0].to("meta"))),
    ):
        with pytest.raises(ValueError, match=f"{name} must be on the device of values, .*; got meta"):
            call()


@pytest.mark.parametrize(
    "odd",
    [
        3.0,
        "ab",
        {},
        (1.0, 0.0),
        (-1.0, 1.0),
        (1.0, math.nan),
        (1.0, "a"),
        (1.0, None),
        (10**400, 1.0),
        (1j, 1.0),
        (1.0,) * 3,
    ],
)
def test_an_odd_spacing_is_named(odd: object) -> None:
    scores, image = torch.zeros(1, 3, 4, 5), torch.full((1, 3, 4, 5), 100.0)
    for call in (
        lambda: DenseCRF(3, spacing=odd),  # type: ignore[arg-type]
        lambda: DenseCRF(3)(scores, image, spacing=odd),
    ):
        with pytest.raises((ValueError, TypeError), match=r"^spacing must"):
            call()


@pytest.mark.parametrize("name", ["weight", "sigma_rgb", "sigma_xy", "scale_factor"])
@pytest.mark.parametrize("odd", [True, "3", None, 10**400, [1, 2]], ids=lambda value: type(value).__name__)
def test_odd_numbers_of_the_loss_are_named(name: str, odd: object) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{name} must"):
        DenseCRFLoss(**{name: odd})  # type: ignore[arg-type]


def test_scores_that_are_no_floats_and_numbers_that_are_none() -> None:
    for call, value in ((marginals, LOGITS.long()), (entropy, LOGITS.byte())):
        with pytest.raises(TypeError, match=r"logits must be floating point; got torch\."):
            call(value)
    for call in (marginals, entropy, map_labels):
        for value in (LOGITS > 0, LOGITS.to(torch.complex64)):
            with pytest.raises(TypeError, match=r"logits must hold real numbers; got torch\."):
                call(value)
    assert torch.equal(map_labels((LOGITS * 10).long()), (LOGITS * 10).long().argmax(1))
    for iterations in (-1, 2**31, 1.5, "3", True):
        with pytest.raises(ValueError, match="iterations must be a whole number"):
            diagnose(DenseCRF(4), LOGITS, IMAGE, iterations=iterations)  # type: ignore[arg-type]
