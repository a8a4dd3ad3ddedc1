"""Class activation maps of weakly supervised projects, in pickles that are never run."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import write_folder
from numpy.typing import NDArray
from PIL import Image
from samples import photo

import deeplab_crf
from deeplab_crf.cli import main
from deeplab_crf.data.plain_pickle import read_plain_pickle
from deeplab_crf.data.scores import read_scores

SIZE = (24, 32)
RNG = np.random.default_rng(3)


def normalised(count: int, size: tuple[int, int] = SIZE) -> NDArray[np.float32]:
    maps = RNG.random((count, *size)).astype(np.float32)
    return maps / (maps.max(axis=(1, 2), keepdims=True) + 1e-5)


def save(path: Path, value: Any) -> Path:
    np.save(path, value)
    return path


def with_background(maps: NDArray[np.float32], rule: str) -> NDArray[np.float32]:
    """What eval_cam.py of IRNet (constant) and infer_cls.py of AffinityNet (power) do."""
    kind, number = rule.split(":")
    constant = np.full((1, *maps.shape[1:]), float(number), np.float32)
    power = np.power(1 - np.max(maps, axis=0, keepdims=True), float(number))
    return np.concatenate([constant if kind == "constant" else power, maps])


@pytest.mark.parametrize("background", [None, "constant:0.3", "power:24"])
def test_maps_by_class(tmp_path: Path, background: str | None) -> None:
    """AffinityNet and SEAM: {class: map}, in the order of the classes or not."""
    maps = normalised(2)
    path = save(tmp_path / "a.npy", {14: maps[0], 3: maps[1]})
    scores = read_scores(path, image_size=SIZE, cam_background=background)
    assert (scores.kind, scores.class_ids.tolist(), scores.partial) == ("probabilities", [0, 4, 15], True)
    np.testing.assert_allclose(scores.values, with_background(maps[::-1], background or "power:4"), atol=1e-6)


def test_maps_by_class_after_a_crf_have_the_background_already(tmp_path: Path) -> None:
    maps = normalised(3)
    maps /= maps.sum(axis=0)
    scores = read_scores(save(tmp_path / "a.npy", {0: maps[0], 4: maps[1], 15: maps[2]}))
    assert scores.class_ids.tolist() == [0, 4, 15]
    np.testing.assert_array_equal(scores.values, maps)


@pytest.mark.parametrize("kind", ["numpy", "list", "torch"])
def test_maps_with_keys(tmp_path: Path, kind: str) -> None:
    """IRNet: its keys and coarse maps are tensors, its fine maps an array; others save arrays alone."""
    fine, coarse = normalised(2), normalised(2, (6, 8))
    keys: Any = np.array([3, 14])
    if kind == "torch":
        torch = pytest.importorskip("torch", reason="the file holds tensors")
        keys, coarse = torch.tensor([3, 14]), torch.from_numpy(coarse)
    elif kind == "list":
        keys = [3, 14]
    path = save(tmp_path / "a.npy", {"keys": keys, "cam": coarse, "high_res": fine})
    scores = read_scores(path, image_size=SIZE)
    assert scores.class_ids.tolist() == [0, 4, 15]
    np.testing.assert_allclose(scores.values, with_background(fine, "constant:0.15"), atol=1e-6)
    scores = read_scores(save(tmp_path / "b.npy", {"keys": keys, "cam": coarse}), image_size=SIZE)
    np.testing.assert_allclose(scores.values[1:], np.asarray(coarse), atol=1e-6)


def test_an_image_without_classes_is_background(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npy", {"keys": np.zeros(0, int), "high_res": np.zeros((0, *SIZE), np.float32)})
    assert read_scores(path, image_size=SIZE).class_ids.tolist() == [0]


def test_tensors_that_are_views(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the file holds tensors")
    whole = torch.rand(5, 7)
    kept = {"a": whole.t(), "b": whole[1:4, ::2], "c": torch.zeros(0, 3), "d": torch.tensor(3), "e": whole.half()}
    read = read_plain_pickle(pickle.dumps(kept, protocol=3))
    for name, tensor in kept.items():
        np.testing.assert_array_equal(read[name], tensor.numpy())


def test_refine_is_what_the_projects_do(tmp_path: Path) -> None:
    """Their crf_inference takes -log of the unnormalised scores, clipped to 1e-5, of the classes that are present."""
    image, maps = photo(*SIZE), normalised(2)
    Image.fromarray(image).save(tmp_path / "a.png")
    save(tmp_path / "a.npy", {3: maps[0], 14: maps[1]})
    words = [
        "refine",
        str(tmp_path / "a.png"),
        str(tmp_path / "a.npy"),
        "-o",
        str(tmp_path / "out.png"),
        "--probabilities",
    ]
    assert main([*words, "--cam-background", "power:24"]) == 0
    unary = -np.log(with_background(maps, "power:24").clip(1e-5, 1))
    with np.load(tmp_path / "out_probabilities.npz") as stored:
        assert stored["classes"].tolist() == [0, 4, 15]
        np.testing.assert_allclose(stored["probabilities"], deeplab_crf.dense_crf(image, unary=unary), atol=1e-6)


def test_evaluate_scores_maps_of_some_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="evaluate needs torch")
    root = write_folder(tmp_path / "data", train=1, val=1, size=SIZE)
    labels = np.array(Image.open(root / "labels" / "val" / "val0.png"))
    maps = np.stack([labels == 2]).astype(np.float32)  # class 2 is the foreground's class 1
    (tmp_path / "cams").mkdir()
    save(tmp_path / "cams" / "val0.npy", {1: maps[0]})
    words = ["evaluate", "--data", f"folder:{root}:val", "--scores", str(tmp_path / "cams"), "--threads", "1"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())["network"]["matrix"]
    assert found == [
        [int((labels == 0).sum()), 0, 0],
        [int((labels == 1).sum()), 0, 0],
        [0, 0, int((labels == 2).sum())],
    ]
    capsys.readouterr()
    save(tmp_path / "cams" / "val0.npy", {7: maps[0]})
    assert main(words) == 1
    assert "scores must be of the data set's 3 classes; got class 8" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0.15", "constant:2", "constant:-1", "power:0", "power:nan", "alpha:4", "power:"])
def test_backgrounds_without_meaning(tmp_path: Path, text: str) -> None:
    path = save(tmp_path / "a.npy", {0: normalised(1)[0]})
    with pytest.raises(ValueError, match="cam_background must be constant:T"):
        read_scores(path, cam_background=text)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"x": 1}, "its keys are 'x'"),
        ({}, "it holds a dict"),
        ([1], "it holds a list|Python objects"),
        ({0: np.zeros((2, 3))}, None),
        ({0: np.zeros((2, 3), int)}, "a value is no map"),
        ({0: np.zeros((2, 3)), 1: np.zeros((3, 3))}, "must be of one size"),
        ({0: np.full((2, 3), 7.0)}, r"in 0\.\.1; got 0\.\.7"),
        ({0: np.full((2, 3), np.nan)}, r"in 0\.\.1; got"),
        ({-1: np.zeros((2, 3))}, "at least 0"),
        ({10**30: np.zeros((2, 3))}, "small numbers"),
        ({"keys": [1, 2], "cam": np.zeros((1, 2, 3))}, "of other shapes"),
        ({"keys": [1, 1], "cam": np.zeros((2, 2, 3))}, "must be different"),
        ({"keys": [1]}, "of other shapes"),
        ({"keys": [[1], [1, 2]], "cam": np.zeros((2, 2, 3))}, "of other shapes"),
        ({"keys": [1], "cam": None}, "of other shapes"),
    ],
)
def test_other_dictionaries_are_named(tmp_path: Path, value: Any, message: str | None) -> None:
    boxed = np.empty((), object)
    boxed[()] = value
    path = save(tmp_path / "a.npy", boxed)
    if message is None:
        assert read_scores(path).class_ids.tolist() == [0, 1]
        return
    with pytest.raises(ValueError, match=rf"a\.npy: .*({message})"):
        read_scores(path)


def test_maps_are_no_logits(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npy", {0: normalised(1)[0]})
    with pytest.raises(ValueError, match=r"a\.npy: .*--scores-are is for arrays, not for class activation maps"):
        read_scores(path, kind="logits")


class _Runs:
    """A pickle of it calls ``os.mkdir`` when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_is_run(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npy", {0: _Runs(tmp_path / "hacked")})
    with pytest.raises(ValueError, match=r"a\.npy: cannot be read as a NumPy file: .* found a (posix|nt)\.mkdir"):
        read_scores(path)
    assert not (tmp_path / "hacked").exists()


def nested(depth: int) -> bytes:
    """A tuple that holds one tuple twice, and so on: its hash takes 2 ** depth steps."""
    doubled = b"".join(b"\x94h" + bytes([i, ord("h"), i]) + b"\x86" for i in range(depth))
    return b"\x80\x04})" + doubled + b"Ns."


ARRAY = pickle.dumps(np.zeros(3), protocol=4)

# Pickles that take memory or time where they are loaded as others do, and damaged ones; and what is said of them.
HOSTILE = {
    "a text longer than the file": (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.", "expected|exceeds"),
    "a key that hashes for ever": (nested(60), "a dictionary with a tuple as key"),
    "an array of 12 TB": (ARRAY.replace(b"K\x03\x85", b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85"), "cannot reshape"),
    "an extension": (b"\x80\x04\x82\x01.", "the instruction EXT1"),
    "a class": (b"\x80\x04cos\nsystem\n)\x81.", "the instruction NEWOBJ"),
    "a function": (b"\x80\x04cos\nsystem\n)R.", "os.system"),
    "many instructions": (b"\x80\x04" + b"N" * 300_000 + b".", "more than 200000 instructions"),
    "a call of a number": (b"\x80\x04K\x01)R.", "a call of a int"),
    "a type of objects": (ARRAY.replace(b"f8", b"V8"), "an array of 'V8'"),
    "no stack": (b"\x80\x04R.", "an empty stack"),
    "no end": (b"\x80\x04}", "exhausted|no end"),
    "nothing": (b"", "exhausted|no end"),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_pickles_are_refused_at_once(tmp_path: Path, name: str) -> None:
    data, message = HOSTILE[name]
    with pytest.raises(ValueError, match=message):
        read_plain_pickle(data)
    boxed = save(tmp_path / "a.npy", {0: normalised(1)[0]}).read_bytes()
    (tmp_path / "a.npy").write_bytes(boxed[: boxed.index(b"\x80\x04")] + data)
    with pytest.raises(ValueError, match=r"a\.npy: cannot be read as a NumPy file"):
        read_scores(tmp_path / "a.npy")


def test_a_place_in_the_memo_far_away_takes_no_memory() -> None:
    """Python's own reader takes 32 GiB for it."""
    assert read_plain_pickle(b"\x80\x04}r\xff\xff\xff\x7f.") == {}


@pytest.mark.parametrize("size", [b"K\x03K\x03\x86", b"K\x02K\x04\x86"])
def test_tensors_beyond_their_numbers_are_refused(size: bytes) -> None:
    torch = pytest.importorskip("torch", reason="the file holds tensors")
    good = pickle.dumps({"a": torch.arange(6.0).reshape(2, 3)}, protocol=3)
    assert good.count(b"K\x02K\x03\x86") == 1
    with pytest.raises(ValueError, match=r"a tensor of shape .* in 6 numbers"):
        read_plain_pickle(good.replace(b"K\x02K\x03\x86", size))


def test_damaged_pickles_are_refused() -> None:
    torch = pytest.importorskip("torch", reason="the file holds tensors")
    value = {"keys": torch.tensor([1, 2]), "cam": normalised(2, (3, 4)), 3: [1.5, None, True]}
    good = pickle.dumps(value, protocol=4)
    rng = np.random.default_rng(0)
    for _ in range(500):
        damaged = bytearray(good)
        for place in rng.integers(0, len(good), rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        try:
            read_plain_pickle(bytes(damaged[: rng.integers(1, len(good))] if rng.random() < 0.3 else damaged))
        except ValueError:
            continue
