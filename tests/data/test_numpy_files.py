"""Headers of NumPy files are believed only as far as the file and the image go; scores of unusual types and layouts."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deeplab_crf.data.numpy_files import stored_arrays
from deeplab_crf.data.scores import read_scores

SIZE = (24, 32)


def header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"shape": shape, "fortran_order": False, "descr": dtype})
    return stream.getvalue()


def refused_without_memory(path: Path, message: str, **options: Any) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            read_scores(path, **options)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", [(21, 10**6, 10**6), (2**62, 2**62), (10**9,)])
def test_a_header_that_promises_more_than_the_file(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(header(shape) + bytes(100))
    refused_without_memory(path, r"a\.npy: cannot be read as a NumPy file \(it ends before the numbers")
    path = tmp_path / "b.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("scores.npy", header(shape) + bytes(100))
    refused_without_memory(path, r"b\.npz: cannot be read as a NumPy file \(it ends before the numbers")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 900, 1200), "scores are 900 x 1200 .* the image is 24 x 32: they must be of the same size, or coarser"),
        ((5000, *SIZE), r"more than 1024 classes need num_labels \(--num-labels\); got shape \(5000, 24, 32\)"),
        ((3, 1, 900, 1200), r"scores must have shape \(C, H, W\)"),
        ((3_000_000,), r"scores must have shape \(C, H, W\)"),
        ((900, 1200), "scores are 900 x 1200"),
    ],
)
def test_small_files_of_large_arrays_are_refused_before_they_are_read(
    tmp_path: Path, shape: tuple[int, ...], message: str
) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, logits=np.zeros(shape, np.float32))
    assert path.stat().st_size < 2**15
    refused_without_memory(path, rf"a\.npz: .*{message}", image_size=SIZE)


def test_many_classes_are_read_where_they_are_expected(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", logits=np.zeros((1025, 4, 5), np.float16))
    assert len(read_scores(tmp_path / "a.npz", num_labels=1025, image_size=(4, 5)).class_ids) == 1025


def test_large_labels_and_classes_are_refused_before_they_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", labels=np.zeros((4000, 4000), np.uint8))
    refused_without_memory(
        tmp_path / "a.npz", r"a\.npz: labels are 4000 x 4000 .* the image is 24 x 32", image_size=SIZE
    )
    np.savez_compressed(tmp_path / "b.npz", logits=np.zeros((3, 4, 5)), classes=np.zeros(10**7))
    tracemalloc.start()
    assert read_scores(tmp_path / "b.npz").class_ids.tolist() == [0, 1, 2]
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_saved_scores_of_many_pixels_are_refused_before_they_are_read(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="saved scores need torch")
    from deeplab_crf.evaluation.saved_scores import read_saved_scores

    path = tmp_path / "a.npz"
    stream = io.BytesIO()
    np.save(stream, np.array((20000, 20000)))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("size.npy", stream.getvalue())
        with archive.open("scores.npy", "w") as member:
            member.write(header((3, 20000, 20000), "<f2"))
    with pytest.raises(ValueError, match=r"a\.npz: .*it ends before"):
        read_saved_scores(path)
    for size in ((10**6, 10**6), (2**15 + 1, 20)):
        np.savez(path, scores=np.zeros((3, 6, 7), np.float16), size=size)
        with pytest.raises(ValueError, match=rf"a\.npz: .*32768 pixels a side; got .* of {size[0]} x"):
            read_saved_scores(path)
    np.savez(path, scores=np.zeros((3, 6, 7), np.float16), size=(9000, 9000))
    saved = read_saved_scores(path)
    assert saved is not None
    with pytest.raises(
        ValueError, match=r"a\.npz: scores are of an image of 9000 x 9000, .* 24 x 32, is too small a part"
    ):
        saved.logits(SIZE, path)


def test_saved_scores_of_more_bytes_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="saved scores need torch")
    from deeplab_crf.evaluation import saved_scores

    monkeypatch.setattr(saved_scores, "LARGEST_FILE", 1000)
    np.savez(tmp_path / "a.npz", scores=np.zeros((3, 20, 20), np.float16), size=(20, 20))
    with pytest.raises(
        ValueError, match=r"a\.npz: scores must take at most 1000 bytes.* got float16 of shape \(3, 20, 20\)"
    ):
        saved_scores.read_saved_scores(tmp_path / "a.npz")


def test_what_is_stored_is_known_before_it_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(6).reshape(2, 3), y=np.ones(2, np.float16))
    with stored_arrays(tmp_path / "a.npz") as arrays:
        assert {name: (each.shape, each.dtype.name) for name, each in arrays.items()} == {
            "x": ((2, 3), "int64"), "y": ((2,), "float16"),
        }  # fmt: skip
        np.testing.assert_array_equal(arrays["x"].read(), [[0, 1, 2], [3, 4, 5]])
    np.save(tmp_path / "b.npy", np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    with stored_arrays(tmp_path / "b.npy") as arrays:
        np.testing.assert_array_equal(arrays[""].read(), [[0, 1, 2], [3, 4, 5]])


def softmax(classes: int, size: tuple[int, int] = SIZE) -> NDArray[np.float32]:
    values = np.exp(3 * np.random.default_rng(0).normal(size=(classes, *size)))
    return (values / values.sum(axis=0)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("last", [False, True])
def test_probabilities_in_bytes(tmp_path: Path, dtype: type, last: bool) -> None:
    probabilities, top = softmax(5), np.iinfo(dtype).max
    stored = (probabilities * top).round().astype(dtype)
    np.save(tmp_path / "a.npy", np.moveaxis(stored, 0, -1) if last else stored)
    scores = read_scores(tmp_path / "a.npy", image_size=SIZE)
    assert scores.kind == "probabilities"
    np.testing.assert_allclose(scores.values, probabilities, atol=2 / top)
    np.testing.assert_allclose(scores.values.sum(axis=0), 1, atol=1e-6)


def test_a_saliency_map_in_bytes_may_be_0_to_1_too(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[0, 51, 255]], np.uint8))
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1; got 0\.\.255\. Divide those in 0\.\.255 by 255"):
        read_scores(tmp_path / "a.npy", kind="probabilities")


def test_bytes_that_are_no_probabilities_are_not_guessed(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((3, *SIZE), 100, np.uint8))
    with pytest.raises(ValueError, match=r"scores must be floating point; got uint8"):
        read_scores(tmp_path / "a.npy", image_size=SIZE)
    with pytest.raises(ValueError, match=r"probabilities must lie in 0\.\.1; got 100\.\.100"):
        read_scores(tmp_path / "a.npy", image_size=SIZE, kind="probabilities")


def test_a_cube_has_two_meanings(tmp_path: Path) -> None:
    cube = softmax(9, (9, 9))
    np.save(tmp_path / "a.npy", cube)
    with pytest.raises(
        ValueError, match=r"a\.npy: shape \(9, 9, 9\) may be \(C, H, W\) or \(H, W, C\)\. Save .* \(1, C, H, W\)"
    ):
        read_scores(tmp_path / "a.npy", image_size=(9, 9))
    np.save(tmp_path / "a.npy", cube[None])
    np.testing.assert_array_equal(read_scores(tmp_path / "a.npy", image_size=(9, 9)).values, cube)


@pytest.mark.parametrize("classes", [[0, 0, 1], [-1, 0, 1], [0.0, 1.0, 2.0]])
def test_classes_beside_scores_are_checked(tmp_path: Path, classes: list[float]) -> None:
    np.savez(tmp_path / "a.npz", logits=np.zeros((3, 4, 5)), classes=classes)
    with pytest.raises(ValueError, match=r"a\.npz: classes must be different whole numbers"):
        read_scores(tmp_path / "a.npz")


def test_a_void_of_16_bits_is_not_a_class(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[0, 1, 65535]], np.uint16))
    with pytest.raises(ValueError, match=r"labels hold 65535, .* --ignore-label 65535 or --map-labels 65535=255"):
        read_scores(tmp_path / "a.npy")
    assert read_scores(tmp_path / "a.npy", ignore_label=65535).class_ids.tolist() == [0, 1]
    assert read_scores(tmp_path / "a.npy", ignore_label=None).class_ids.tolist() == [0, 1, 65535]
