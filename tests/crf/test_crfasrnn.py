"""Parameters of crfasrnn_pytorch: the layer computes what that package does, re-implemented slowly here."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
import samples
import torch
from crf_samples import here

from deeplab_crf import Bilateral, Gaussian
from deeplab_crf.crf.crfasrnn import load_crfasrnn_state_dict
from deeplab_crf.crf.dense_crf import DenseCRF

pytestmark = pytest.mark.usefixtures("device")

HEIGHT, WIDTH, LABELS = 9, 11, 4
NAMES = ("spatial_ker_weights", "bilateral_ker_weights", "compatibility_matrix")


def state(prefix: str = "crfrnn.") -> dict[str, Any]:
    """As `torch.save(model.state_dict())` leaves it; trained, so neither diagonal nor symmetric."""
    generator = torch.Generator("cpu").manual_seed(0)
    noise = [0.3 * here(torch.randn(LABELS, LABELS, generator=generator, device="cpu")) for _ in NAMES]
    scales = (3.0, 5.0, 1.0)
    return {
        prefix + name: scale * torch.eye(LABELS) + change
        for name, scale, change in zip(NAMES, scales, noise, strict=True)
    }


def layer(**options: Any) -> DenseCRF:
    """CRF-RNN's, with the iterations that crfasrnn_pytorch's network has."""
    return DenseCRF.from_preset("crfasrnn", LABELS, compatibility="matrix", **options)


def scores() -> tuple[Any, Any]:
    """Logits (1, L, H, W), float64, and the image (1, 3, H, W)."""
    logits = torch.tensor(-samples.energies(LABELS, HEIGHT * WIDTH, dtype=np.float64)).reshape(1, LABELS, HEIGHT, WIDTH)
    return logits, here(torch.from_numpy(samples.photo(HEIGHT, WIDTH))).permute(2, 0, 1)[None]


def crfrnn_forward(parameters: dict[str, Any], logits: np.ndarray, picture: np.ndarray, iterations: int) -> np.ndarray:
    """CrfRnn.forward of crfasrnn_pytorch (crfrnn.py), line by line, on the oracle's lattice: logits (L, N) to logits (L, N)."""
    spatial, bilateral, compatibility = (parameters[f"crfrnn.{name}"].double().cpu().numpy() for name in NAMES)
    spatial_filter = oracle.Lattice(oracle.gaussian_features(HEIGHT, WIDTH, 3.0, np.float64))
    bilateral_filter = oracle.Lattice(oracle.bilateral_features(picture, 160.0, 3.0, np.float64))
    cur_logits = logits
    for _ in range(iterations):
        q_values = oracle.softmax(cur_logits)
        spatial_out = spatial @ oracle.normalized_filter(spatial_filter, q_values.T, "after").T
        bilateral_out = bilateral @ oracle.normalized_filter(bilateral_filter, q_values.T, "after").T
        msg_passing_out = compatibility @ (spatial_out + bilateral_out)
        cur_logits = msg_passing_out + logits
    return cur_logits


@pytest.mark.parametrize("iterations", [1, 5])
def test_computes_what_crfasrnn_pytorch_does(iterations: int) -> None:
    crf = layer(iterations=iterations)
    load_crfasrnn_state_dict(crf, state())
    logits, image = scores()
    want = crfrnn_forward(
        state(), logits.reshape(LABELS, -1).cpu().numpy(), image[0].permute(1, 2, 0).cpu().numpy(), iterations
    )
    want -= np.log(np.exp(want).sum(axis=0))  # ours are normalised
    # The layer keeps its matrices in float32.
    assert samples.scaled_error(crf(logits, image).reshape(LABELS, -1).cpu().numpy(), want) < 1e-6


def test_untrained_parameters_are_the_preset() -> None:
    """crfasrnn_pytorch starts from Potts with weights 3 and 5."""
    eye = torch.eye(LABELS)
    crf = layer()
    load_crfasrnn_state_dict(crf, dict(zip(NAMES, (3 * eye, 5 * eye, eye), strict=True)))
    logits, image = scores()
    torch.testing.assert_close(crf(logits, image), layer()(logits, image))


@pytest.mark.parametrize("prefix", ["", "crfrnn.", "module.crfrnn."])
def test_any_prefix(prefix: str) -> None:
    crf, expected = layer(), layer()
    load_crfasrnn_state_dict(crf, state(prefix))
    load_crfasrnn_state_dict(expected, state())
    assert torch.equal(crf.compatibility, expected.compatibility)


def test_the_kernels_order_does_not_matter() -> None:
    kernels = (Bilateral(160, 3, 5), Gaussian(3, 3))
    crf = DenseCRF(LABELS, kernels, 5, normalization="after", compatibility="matrix")
    expected = layer(iterations=5)
    for each in (crf, expected):
        load_crfasrnn_state_dict(each, state())
    torch.testing.assert_close(crf(*scores()), expected(*scores()))


def test_trainable_parameters_stay_parameters() -> None:
    crf = layer(trainable=("weights", "compatibility"))
    load_crfasrnn_state_dict(crf, state())
    assert {name for name, _ in crf.named_parameters()} == {"weights", "compatibility"}
    assert torch.equal(crf.weights, torch.ones(2))


def test_every_fault_is_listed_and_nothing_is_loaded() -> None:
    faulty = state()
    del faulty["crfrnn.spatial_ker_weights"]
    faulty["crfrnn.bilateral_ker_weights"] = torch.eye(LABELS + 1)
    faulty["conv1.weight"] = torch.ones(1)
    crf, fresh = layer(), layer()
    with pytest.raises(ValueError, match="state_dict must hold") as caught:
        load_crfasrnn_state_dict(crf, faulty)
    assert "missing crfrnn.spatial_ker_weights" in str(caught.value)
    assert "not known conv1.weight" in str(caught.value)
    assert "crfrnn.bilateral_ker_weights has shape (5, 5) instead of (4, 4)" in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(crf.state_dict().values(), fresh.state_dict().values(), strict=True))


def test_names_behind_different_prefixes() -> None:
    mixed = {"a.spatial_ker_weights": torch.eye(4), "b.bilateral_ker_weights": torch.eye(4)}
    with pytest.raises(ValueError, match=r"missing spatial_ker_weights; not known a\.spatial_ker_weights"):
        load_crfasrnn_state_dict(layer(), mixed)


@pytest.mark.parametrize(
    "crf",
    [
        DenseCRF(LABELS),
        DenseCRF(LABELS, compatibility="diagonal"),
        DenseCRF(LABELS, (Gaussian(),), compatibility="matrix"),
        DenseCRF(LABELS, (Gaussian(), Gaussian()), compatibility="matrix"),
    ],
    ids=["potts", "diagonal", "one kernel", "no bilateral"],
)
def test_layers_of_another_kind(crf: DenseCRF) -> None:
    with pytest.raises(ValueError, match='crf must have compatibility="matrix" and two kernels'):
        load_crfasrnn_state_dict(crf, state())
