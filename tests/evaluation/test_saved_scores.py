"""Score files: what is written is read, and what is damaged is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deeplab_crf.evaluation.saved_scores import read_saved_scores, write_saved_scores


def test_what_is_written_is_read(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).normal(0, 9, (3, 6, 7)).astype(np.float32)
    path = tmp_path / "new" / "a.npz"
    write_saved_scores(path, scores, (41, 49))
    saved = read_saved_scores(path)
    assert saved is not None
    assert (saved.values.dtype, saved.size) == (np.float16, (41, 49))
    np.testing.assert_array_equal(saved.values, scores.astype(np.float16))
    with np.load(path) as stored:  # the documented format
        assert sorted(stored.files) == ["scores", "size"]
        assert stored["size"].tolist() == [41, 49]
    assert saved.seen_of((41, 49), path) == (41, 49)
    with pytest.raises(ValueError, match=r"a.npz: scores are of an image of 41 x 49 .* this image has 42 x 49"):
        saved.seen_of((42, 49), path)


def test_resized_images_say_their_size(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_saved_scores(path, np.zeros((3, 6, 7)), (41, 49), (36, 48))
    saved = read_saved_scores(path)
    assert saved is not None
    assert saved.seen_of((360, 480), path) == saved.seen_of((27, 36), path) == (36, 48)
    assert saved.seen_of((1080, 1441), path) == (36, 48)  # rounded to pixels
    for other in ((480, 360), (360, 500)):
        with pytest.raises(ValueError, match=rf"36 x 48 are the image itself; this image has {other[0]} x {other[1]}"):
            saved.seen_of(other, path)
    np.savez(path, scores=np.zeros((3, 6, 7), np.float16), size=[41, 49], seen=[36.0, 48.0])
    with pytest.raises(ValueError, match="two whole numbers"):
        read_saved_scores(path)


@pytest.mark.parametrize("number", [1e5, np.nan, -np.inf])
def test_what_float16_cannot_hold_is_refused(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match=r"a.npz: scores must be within \+-65504"):
        write_saved_scores(tmp_path / "a.npz", np.full((2, 3, 3), number, np.float32), (17, 17))
    assert not list(tmp_path.iterdir())


def test_classes_that_a_pixel_cannot_have(tmp_path: Path) -> None:
    scores = np.zeros((3, 6, 7), np.float16)
    scores[1, 2:] = -np.inf
    np.savez(tmp_path / "a.npz", scores=scores, size=[41, 49])
    saved = read_saved_scores(tmp_path / "a.npz")
    assert saved is not None
    logits = saved.logits((41, 49), tmp_path / "a.npz").numpy()
    assert not np.isnan(logits).any()
    assert (logits[1, 16:] < -1e38).all()
    assert (logits[::2] == 0).all()
    np.savez(tmp_path / "a.npz", scores=np.full_like(scores, -np.inf), size=[41, 49])
    with pytest.raises(ValueError, match=r"a.npz: scores must be finite, or -inf where the pixel has a finite one"):
        read_saved_scores(tmp_path / "a.npz")


def test_other_files_are_not_ours(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 3)))
    np.savez(tmp_path / "b.npz", logits=np.zeros((2, 3, 3)))
    assert read_saved_scores(tmp_path / "a.npy") is None
    assert read_saved_scores(tmp_path / "b.npz") is None


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path, good = tmp_path / "a.npz", np.zeros((2, 3, 3), np.float16)
    nan = good.copy()
    nan[0, 0, 0] = np.nan
    for message, scores, size in (
        ("floats of shape", good[0], [17, 17]),
        ("floats of shape", good.astype(int), [17, 17]),
        ("two whole numbers", good, [17]),
        ("two whole numbers", good, [17.0, 17.0]),
        ("no less than that of the scores", good, [17, 2]),
        ("must be finite", nan, [17, 17]),
    ):
        np.savez(path, scores=scores, size=size)
        with pytest.raises(ValueError, match=f"a.npz: .*{message}"):
            read_saved_scores(path)
    write_saved_scores(path, np.zeros((3, 65, 65)), (513, 513))  # so large that the header is read before the checksum
    whole = path.read_bytes()
    for damaged in (whole[:100], whole.replace(b"}", b" ")):  # the second: a header that does not end
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a.npz: cannot be read as a NumPy file"):
            read_saved_scores(path)
