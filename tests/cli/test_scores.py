"""deeplab_crf.data.scores: what a file of scores means, and its size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deeplab_crf.data.scores import UNSURE, Scores, fit_to_image, read_scores, upsample_bilinear

LOGITS = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32) * 3
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=0)


def stored(folder: Path, array: NDArray[Any]) -> Path:
    np.save(folder / "scores.npy", array)
    return folder / "scores.npy"


def labels_file(folder: Path, ids: list[list[int]]) -> Path:
    Image.fromarray(np.array(ids, dtype=np.uint8)).save(folder / "labels.png")
    return folder / "labels.png"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("array", "kind"),
    [(PROBABILITIES, "probabilities"), (np.log(PROBABILITIES), "logits"), (-np.log(PROBABILITIES), "unary")],
    ids=["softmax", "log-softmax", "minus-log-softmax"],
)
def test_kind_is_known_where_probabilities_add_up(tmp_path: Path, array: NDArray[Any], kind: str, dtype: Any) -> None:
    scores = read_scores(stored(tmp_path, array.astype(dtype)))
    assert scores.kind == kind
    np.testing.assert_array_equal(scores.values, array.astype(dtype))
    np.testing.assert_array_equal(scores.class_ids, [0, 1, 2])


@pytest.mark.parametrize("array", [LOGITS, np.abs(LOGITS), -np.abs(LOGITS), LOGITS[0]])
def test_kind_is_never_guessed_where_it_is_not_certain(tmp_path: Path, array: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"scores\.npy: cannot tell what .*--scores-are logits"):
        read_scores(stored(tmp_path, array))
    for kind in ("logits", "unary"):
        if array.ndim == 3:
            assert read_scores(stored(tmp_path, array), kind=kind).kind == kind


@pytest.mark.parametrize(("key", "kind"), [("logits", "logits"), ("prob", "probabilities"), ("unary", "unary")])
def test_npz_key_says_the_kind(tmp_path: Path, key: str, kind: str) -> None:
    np.savez(tmp_path / "s.npz", **{key: PROBABILITIES, "other": LOGITS})
    assert read_scores(tmp_path / "s.npz").kind == kind
    assert read_scores(tmp_path / "s.npz", key="other", kind="logits").values[0, 0, 0] == LOGITS[0, 0, 0]


def test_npz_with_several_arrays_asks_which(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", a=LOGITS, b=LOGITS)
    with pytest.raises(ValueError, match=r"s\.npz: which array .* it has a, b\. Name one with --key"):
        read_scores(tmp_path / "s.npz")
    with pytest.raises(ValueError, match=r"no array is called 'c'; it has a, b"):
        read_scores(tmp_path / "s.npz", key="c")


def test_classes_beside_the_scores_are_their_ids(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", probabilities=PROBABILITIES, classes=np.array([0, 7, 300]))
    np.testing.assert_array_equal(read_scores(tmp_path / "s.npz").class_ids, [0, 7, 300])


def test_one_channel_is_the_foreground_of_two(tmp_path: Path) -> None:
    for array in (PROBABILITIES[0], PROBABILITIES[:1], PROBABILITIES[:1, None].swapaxes(0, 1)):
        scores = read_scores(stored(tmp_path, array), kind="probabilities")
        np.testing.assert_allclose(scores.values, [1 - PROBABILITIES[0], PROBABILITIES[0]])
    np.testing.assert_array_equal(
        read_scores(stored(tmp_path, LOGITS[0]), kind="logits").values, [0 * LOGITS[0], LOGITS[0]]
    )
    with pytest.raises(ValueError, match="a unary needs one energy a class"):
        read_scores(stored(tmp_path, LOGITS[0]), kind="unary")


def test_batch_of_one_and_channels_last(tmp_path: Path) -> None:
    for array in (LOGITS[None], np.moveaxis(LOGITS, 0, -1), np.moveaxis(LOGITS, 0, -1)[None]):
        scores = read_scores(stored(tmp_path, array), kind="logits", image_size=(4, 5))
        np.testing.assert_array_equal(scores.values, LOGITS)
        np.testing.assert_array_equal(scores.class_ids, [0, 1, 2])


@pytest.mark.parametrize(
    ("array", "kind", "message"),
    [
        (np.where(LOGITS[1, 2, 3] == LOGITS, np.nan, LOGITS), "logits", r"must be finite; got nan at \(1, 2, 3\)"),
        (np.where(LOGITS[1, 2, 3] == LOGITS, np.inf, LOGITS), "logits", r"must be finite; got inf at \(1, 2, 3\)"),
        (np.where(LOGITS[1, 2, 3] == LOGITS, -np.inf, LOGITS), "unary", r"must be finite; got -inf at \(1, 2, 3\)"),
        (np.full_like(LOGITS, -np.inf), "logits", r"must be finite; got -inf at \(0, 0, 0\)"),
        (np.where(LOGITS[1, 2, 3] == LOGITS, np.inf, LOGITS), "probabilities", r"must lie in 0\.\.1"),
        (LOGITS, "probabilities", r"probabilities must lie in 0\.\.1"),
        (PROBABILITIES / 2, "probabilities", r"must add up to 1 over the 3 classes .* 0\.5\.\.0\.5"),
        (LOGITS[0, 0], "logits", r"must have shape \(C, H, W\).*got \(5,\)"),
        (np.zeros((3, 0, 5)), "logits", r"got \(3, 0, 5\)"),
        (np.zeros((2, 3, 4, 5)), "logits", r"got \(2, 3, 4, 5\)"),
        (np.zeros((3, 4, 5), np.uint8), None, "must be floating point; got uint8. Say what they are"),
        (LOGITS.astype(complex), "logits", "must be floating point; got complex128"),
    ],
)
def test_bad_arrays(tmp_path: Path, array: NDArray[Any], kind: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=rf"scores\.npy: .*{message}"):
        read_scores(stored(tmp_path, array), kind=kind)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x93NUMPY\x01\x00 cut", b"words"])
def test_broken_array_files_are_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"broken\{suffix}: cannot be read as a NumPy file"):
        read_scores(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_inside_of_an_archive_is_named(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "damaged.npz"
    logits = np.tile(LOGITS, (1, 20, 20))  # so large that its header is read before the checksum
    (np.savez_compressed if compressed else np.savez)(path, logits=logits)
    whole, begin = path.read_bytes(), 30 + len("logits.npy")
    path.write_bytes(whole[:begin] + b"\xff" * 40 + whole[begin + 40 :] if compressed else whole.replace(b"}", b" "))
    with pytest.raises(ValueError, match=r"damaged\.npz: cannot be read as a NumPy file"):
        read_scores(path)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read as a NumPy file"):
        read_scores(stored(tmp_path, np.array([{"logits": 1}], dtype=object)))


def test_labels_are_the_classes_present(tmp_path: Path) -> None:
    scores = read_scores(labels_file(tmp_path, [[0, 7, 255], [7, 9, 0]]))
    assert scores.kind == "labels"
    np.testing.assert_array_equal(scores.class_ids, [0, 7, 9])
    np.testing.assert_array_equal(scores.values, [[0, 1, UNSURE], [1, 2, 0]])


def test_integer_arrays_are_labels(tmp_path: Path) -> None:
    scores = read_scores(stored(tmp_path, np.array([[0, 300]], dtype=np.uint16)))
    assert scores.kind == "labels"
    np.testing.assert_array_equal(scores.class_ids, [0, 300])


def test_num_labels_fixes_the_classes(tmp_path: Path) -> None:
    path = labels_file(tmp_path, [[0, 2, 255]])
    np.testing.assert_array_equal(read_scores(path, num_labels=4).class_ids, [0, 1, 2, 3])
    np.testing.assert_array_equal(read_scores(path, num_labels=256, ignore_label=None).values, [[0, 2, 255]])
    with pytest.raises(
        ValueError, match=r"labels must lie in 0\.\.1, or be the ignore label 255; got 2 at row 0, column 1"
    ):
        read_scores(path, num_labels=2)
    with pytest.raises(ValueError, match="num_labels is 2, but the scores have 3 classes"):
        read_scores(stored(tmp_path, LOGITS), kind="logits", num_labels=2)


def test_a_mask_of_0_and_255_is_not_taken_for_unsure(tmp_path: Path) -> None:
    path = labels_file(tmp_path, [[0, 255]])
    with pytest.raises(
        ValueError, match=r"besides the ignore label 255 .* only .0.. If 255 is a class, give --ignore-label none"
    ):
        read_scores(path)
    np.testing.assert_array_equal(read_scores(path, ignore_label=None).class_ids, [0, 255])
    np.testing.assert_array_equal(read_scores(path, num_labels=2).values, [[0, UNSURE]])


def bilinear(values: NDArray[Any], height: int, width: int, align_corners: bool) -> NDArray[Any]:
    """The definition, in float64."""

    def positions(old: int, new: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        pixel = np.arange(new)
        place = pixel * (old - 1) / max(new - 1, 1) if align_corners else (pixel + 0.5) * old / new - 0.5
        place = np.clip(place, 0, old - 1)
        low = np.floor(place).astype(int)
        return low, np.minimum(low + 1, old - 1), place - low

    top, bottom, down = positions(values.shape[1], height)
    left, right, across = positions(values.shape[2], width)
    rows = values[:, top] * (1 - down)[:, None] + values[:, bottom] * down[:, None]
    return np.asarray(rows[:, :, left] * (1 - across) + rows[:, :, right] * across)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(4, 5), (5, 6), (32, 40), (33, 41), (200, 7)])
def test_upsampling_is_bilinear(size: tuple[int, int], align_corners: bool) -> None:
    for values in (LOGITS.astype(np.float64), LOGITS[:, :1, :1], LOGITS.astype(np.float16)):
        got = upsample_bilinear(values, *size, align_corners=align_corners)
        np.testing.assert_allclose(got, bilinear(values.astype(np.float64), *size, align_corners), atol=1e-4)


@pytest.mark.parametrize("grid", [(45, 60), (46, 61), (41, 41)])
def test_coarse_scores_are_fitted(grid: tuple[int, int]) -> None:
    values = np.random.default_rng(0).normal(size=(2, *grid)).astype(np.float32)
    fitted = fit_to_image(Scores("logits", values, np.arange(2)), 360, 480, align_corners=True)
    assert fitted.size == (360, 480)
    np.testing.assert_allclose(fitted.values[:, ::359, ::479], values[:, :: grid[0] - 1, :: grid[1] - 1], atol=1e-3)


@pytest.mark.parametrize("grid", [(60, 45), (45, 80), (361, 480), (720, 960)])
def test_scores_of_another_image_are_refused(grid: tuple[int, int]) -> None:
    scores = Scores("logits", np.zeros((2, *grid), np.float32), np.arange(2))
    with pytest.raises(ValueError, match=rf"cat\.npy: scores are {grid[0]} x {grid[1]} .* the image is 360 x 480"):
        fit_to_image(scores, 360, 480, name="cat.npy")


def test_labels_are_not_resized() -> None:
    labels = Scores("labels", np.zeros((45, 60), np.int32), np.arange(2))
    with pytest.raises(
        ValueError, match=r"labels are 45 x 60 .* the image is 360 x 480: must agree. Resize labels with"
    ):
        fit_to_image(labels, 360, 480)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", ["logits", "unary"])
def test_classes_that_a_pixel_cannot_have(tmp_path: Path, kind: str, dtype: Any) -> None:
    sign = -1 if kind == "logits" else 1
    energies = -sign * LOGITS.astype(dtype)
    energies[1, :2] = sign * np.inf
    scores = read_scores(stored(tmp_path, energies), kind=kind)
    assert np.isfinite(scores.values).all()
    np.testing.assert_array_equal(scores.values[1, :2], sign * np.finfo(np.float32).max)
    np.testing.assert_array_equal(scores.values[:, 2:], energies[:, 2:])
    upsampled = fit_to_image(scores, 8, 10).values
    assert not np.isnan(upsampled).any()
    assert (np.argmin(sign * upsampled, axis=0)[:4] != 1).all()


def test_a_saturated_softmax_is_recognised(tmp_path: Path) -> None:
    hard = np.eye(3, dtype=np.float32)[:, np.arange(20).reshape(4, 5) % 3]
    with np.errstate(divide="ignore"):
        assert read_scores(stored(tmp_path, np.log(hard))).kind == "logits"
        assert read_scores(stored(tmp_path, -np.log(hard))).kind == "unary"
    assert read_scores(stored(tmp_path, hard)).kind == "probabilities"
