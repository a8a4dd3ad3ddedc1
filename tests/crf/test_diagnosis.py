"""Energies and changes of every iteration against the oracle; the report of errors; the plot."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import oracle
import pytest
import samples
import torch
from crf_samples import here

from deeplab_crf import Bilateral, Gaussian
from deeplab_crf.crf.dense_crf import DenseCRF
from deeplab_crf.crf.diagnosis import Diagnosis, diagnose, entropy, map_labels, marginals, plot_convergence
from deeplab_crf.crf.error_report import error_report

pytestmark = pytest.mark.usefixtures("device")

HEIGHT, WIDTH, LABELS = 10, 20, 3  # wider than a tile of the walk
KERNELS = (Gaussian(sxy=2.0, weight=1.5), Bilateral(sxy=8.0, srgb=25.0, weight=2.0, normalization="after"))


def scores(batch: int = 2, dtype: Any = torch.float64) -> tuple[Any, Any]:
    """Logits (B, L, H, W) and images (B, 3, H, W)."""
    logits = np.stack([-samples.energies(LABELS, HEIGHT * WIDTH, seed) for seed in range(batch)])
    images = np.stack([samples.photo(HEIGHT, WIDTH, seed=seed) for seed in range(batch)])
    maps = torch.tensor(logits, dtype=dtype).reshape(batch, LABELS, HEIGHT, WIDTH)
    return maps, here(torch.from_numpy(images)).permute(0, 3, 1, 2)


def oracle_field(logits: Any, image: Any, method: str = "lattice", keep: Any = None) -> oracle.MeanField:
    """The layer of `KERNELS` on the pixels of one image that are kept."""
    picture = image.permute(1, 2, 0).cpu().numpy()
    keep = np.ones(HEIGHT * WIDTH, bool) if keep is None else keep.cpu().numpy().reshape(-1)
    positions = oracle.gaussian_features(HEIGHT, WIDTH, 2.0, np.float64)[keep]
    colours = oracle.bilateral_features(picture, 8.0, 25.0, np.float64)[keep]
    kind = oracle.Lattice if method == "lattice" else oracle.GaussianFilter
    kernels = [(kind(positions), 1.5, "symmetric"), (kind(colours), 2.0, "after")]
    return oracle.MeanField(-logits.reshape(LABELS, -1).double().cpu().numpy()[:, keep], kernels)


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("method", ["lattice", "exact"])
def test_every_iteration_equals_the_oracle(method: str, damping: float) -> None:
    logits, image = scores()
    crf = DenseCRF(kernels=KERNELS, iterations=4, method=method, damping=damping)
    diagnosis = diagnose(crf, logits, image)
    for number in range(2):
        field = oracle_field(logits[number], image[number], method)
        q = field.start()
        for iteration in range(5):
            got = [
                terms[iteration, number].item()
                for terms in (diagnosis.entropy_term, diagnosis.unary_term, diagnosis.pairwise_term)
            ]
            assert got == pytest.approx(field.energy_terms(q), rel=1e-10)
            if iteration == 4:
                break
            before, q = q, field.step(q, damping)
            changed = (before.argmax(axis=0) != q.argmax(axis=0)).mean()
            assert diagnosis.label_changes[iteration, number].item() == pytest.approx(changed)
            assert diagnosis.largest_moves[iteration, number].item() == pytest.approx(
                np.abs(before - q).max(), rel=1e-9
            )
        refined = diagnosis.logits[number].exp().reshape(LABELS, -1).cpu().numpy()
        assert samples.scaled_error(refined, q) < 1e-11
    assert (diagnosis.label_changes[0] > 0).all()  # there is something to see
    assert diagnosis.num_pixels.tolist() == [HEIGHT * WIDTH] * 2


@pytest.mark.parametrize("method", ["lattice", "exact"])
def test_masked_pixels_do_not_count(method: str) -> None:
    logits, image = scores(1)
    mask = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    mask[:, 7:] = False
    mask[:, :, 9:] = False
    diagnosis = diagnose(DenseCRF(kernels=KERNELS, method=method), logits, image, mask, iterations=1)
    field = oracle_field(logits[0], image[0], method, mask[0])
    q = field.step(field.start())
    got = [terms[1, 0].item() for terms in (diagnosis.entropy_term, diagnosis.unary_term, diagnosis.pairwise_term)]
    assert got == pytest.approx(field.energy_terms(q), rel=1e-10)
    assert diagnosis.num_pixels.item() == 63
    assert diagnosis.label_changes[0, 0].item() == pytest.approx((field.start().argmax(0) != q.argmax(0)).mean())


def test_energies_are_put_together_as_documented() -> None:
    diagnosis = diagnose(DenseCRF(kernels=KERNELS), *scores())
    entropy_term, unary_term, pairwise = diagnosis.entropy_term, diagnosis.unary_term, diagnosis.pairwise_term
    torch.testing.assert_close(diagnosis.kl, entropy_term + unary_term + pairwise)
    torch.testing.assert_close(diagnosis.free_energy, entropy_term + unary_term + pairwise / 2)
    assert (diagnosis.free_energy[-1] < diagnosis.free_energy[0]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("method", ["lattice", "exact"])
def test_ends_where_the_layer_ends(method: str, dtype: Any) -> None:
    logits, image = scores(dtype=dtype)
    crf = DenseCRF(kernels=KERNELS, iterations=3, method=method)
    got, want = diagnose(crf, logits, image).logits, crf(logits, image)
    assert got.dtype == dtype
    bound = {torch.float32: 1e-4, torch.float64: 1e-10, torch.float16: 2e-2}[dtype]
    torch.testing.assert_close(got, want, rtol=0, atol=bound)


def test_more_iterations_than_the_layers_and_none() -> None:
    crf = DenseCRF(kernels=KERNELS, iterations=2)
    longer = diagnose(crf, *scores(), iterations=60)
    assert longer.free_energy.shape == (61, 2)
    assert longer.label_changes[-1].max() == 0
    assert longer.largest_moves[-1].max() < 1e-3 < longer.largest_moves[0].min()
    none = diagnose(crf, *scores(), iterations=0)
    assert none.label_changes.shape == none.largest_moves.shape == (0, 2)
    torch.testing.assert_close(none.logits, torch.log_softmax(scores()[0], dim=1))


def test_entropy_marginals_and_labels() -> None:
    logits = torch.log(torch.tensor([[0.5, 1.0], [0.25, 1e-30], [0.25, 1e-30]]))[None] + 3.0  # (1, 3, 2)
    torch.testing.assert_close(entropy(logits), torch.tensor([[1.5 * math.log(2), 0.0]]))
    torch.testing.assert_close(marginals(logits)[0, :, 0], torch.tensor([0.5, 0.25, 0.25]))
    assert map_labels(-logits).tolist() == [[1, 1]]
    torch.testing.assert_close(entropy(torch.zeros(1, 7, 2, 2)), torch.full((1, 2, 2), math.log(7)))


def test_report_of_errors() -> None:
    logits, image = scores(1)
    settings = {"narrow": DenseCRF(kernels=KERNELS), "wide": DenseCRF(kernels=(Bilateral(20.0, (60.0, 50.0, 40.0)),))}
    report = error_report(settings, logits, image)
    assert [setting.name for setting in report.settings] == ["narrow", "wide"]
    narrow = report.settings[0]
    exact, lattice = (oracle_field(logits[0], image[0], method) for method in ("exact", "lattice"))
    difference = np.abs(exact.run(5) - lattice.run(5))
    assert narrow.mean_error == pytest.approx(difference.mean(), rel=1e-6)
    assert narrow.max_error == pytest.approx(difference.max(), rel=1e-6)
    assert narrow.label_agreement == pytest.approx((exact.run(5).argmax(0) == lattice.run(5).argmax(0)).mean())
    for number, error in enumerate(narrow.message_errors):
        start = exact.start().T
        want, got = (
            oracle.normalized_filter(f.kernels[number][0], start, f.kernels[number][2]) for f in (exact, lattice)
        )
        assert error == pytest.approx(samples.relative_l2(got, want), rel=1e-6)
        assert 1e-4 < error < 0.2
    assert settings["narrow"].method == "lattice"


def test_report_leaves_masked_pixels_out() -> None:
    logits, image = scores(1)
    mask = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    mask[:, :, :4] = False
    got = error_report({"": DenseCRF(kernels=KERNELS)}, logits, image, mask).settings[0]
    exact, lattice = (oracle_field(logits[0], image[0], method, mask[0]) for method in ("exact", "lattice"))
    assert got.mean_error == pytest.approx(np.abs(exact.run(5) - lattice.run(5)).mean(), rel=1e-6)


def test_report_of_no_pixels() -> None:
    logits, image = scores(1)
    mask = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    with pytest.raises(ValueError, match="mask must be True for at least one pixel"):
        error_report({"": DenseCRF(kernels=KERNELS)}, logits, image, mask)


@pytest.mark.parametrize("crfs", [DenseCRF(), [DenseCRF()], {"a": 3}])
def test_report_of_what_is_no_layer(crfs: Any) -> None:
    with pytest.raises(TypeError, match=r'crfs must be layers by name, such as \{"80/13": DenseCRF'):
        error_report(crfs, *scores(1))


def test_report_as_a_table() -> None:
    lines = str(error_report({"mine": DenseCRF(kernels=KERNELS)}, *scores(1))).splitlines()
    assert lines[0].split() == ["setting", "kernel", "message", "mean", "|dQ|", "max", "|dQ|", "labels", "equal"]
    assert lines[1].startswith("mine     gaussian sxy 2, symmetric")
    assert lines[1].endswith("%")
    assert lines[2].strip().startswith("bilateral sxy 8 srgb 25, after")
    assert len(lines) == 3


def test_plot_shows_both_curves(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    diagnosis = diagnose(DenseCRF(kernels=KERNELS, iterations=4), *scores())
    figure = plot_convergence(diagnosis)
    energies, changes = figure.axes
    for image in range(2):
        np.testing.assert_allclose(
            energies.lines[image].get_ydata(), diagnosis.free_energy[:, image].cpu() / (HEIGHT * WIDTH)
        )
        np.testing.assert_allclose(changes.lines[image].get_ydata(), 100 * diagnosis.label_changes[:, image].cpu())
        assert list(changes.lines[image].get_xdata()) == [1, 2, 3, 4]
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.ticker"):
        monkeypatch.setitem(sys.modules, name, None)
    empty = torch.zeros(1, 1)
    with pytest.raises(ImportError, match=r'pip install "deeplab-crf\[bench\]"'):
        plot_convergence(Diagnosis(empty, empty, empty, empty, empty, empty, empty))
