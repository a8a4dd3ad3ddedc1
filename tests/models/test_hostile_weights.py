"""Damaged and hostile weights files: an error that names the file, no code run, nothing allocated because a number says so."""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caffe_files import blob, message, net, number, varint
from hypothesis import given
from hypothesis import strategies as st
from model_samples import small_model

from deeplab_crf.models import load_model, load_weights, save_weights
from deeplab_crf.models.weights import hdf5
from deeplab_crf.models.weights.caffe import read_caffe
from deeplab_crf.models.weights.files import HDF5_MAGIC, read_file

SMALL = net({"conv1_1": [np.ones((2, 3, 3, 3), np.float32), np.ones(2, np.float32)]})


def first_blob(content: bytes) -> bytes:
    return message(100, message(1, b"conv1_1") + message(7, content))


HOSTILE = {
    "length beyond the file": (varint(100 << 3 | 2) + varint(1 << 60) + b"x", "1152921504606846976 bytes follow, but there are 1"),
    "shape that lies": (first_blob(message(7, number(1, 1 << 40) * 2) + message(5, b"1234")), "says that it has shape"),
    "old shape that lies": (first_blob(number(1, 1 << 62) + message(5, b"1234")), r"says that it has shape"),
    "negative size": (first_blob(message(7, number(1, (1 << 64) - 1)) + message(5, b"1234")), r"says that it has shape"),
    "too many axes": (first_blob(message(7, b"\x08\x01" * 200) + message(5, b"1234")), "more than 32 axes"),
    "half a number": (first_blob(message(7, number(1, 1)) + message(5, b"12345")), "no multiple of 4"),
    "cut number": (first_blob(b"\x2d\x00\x00"), "cut off"),
    "endless varint": (b"\xa2" + b"\xff" * 30, "more than 10 bytes"),
    "group": (varint(100 << 3 | 3), "wire type 3"),
    "field 0": (b"\x02\x00", "field has number 0"),
    "text": (b"Not Found: the model has moved", "cannot be read as weights"),
    "nothing": (b"", "it is empty"),
    "no layers": (message(1, b"a net"), "no layers with numbers"),
    "twice": (SMALL + SMALL, "two layers are called 'conv1_1'"),
    "batch norm without factor": (net({"bn_conv1": [np.ones(2, np.float32)]}), "a BatchNorm has mean, variance and factor"),
    "three blobs": (net({"conv1": [np.ones(2, np.float32)] * 3}), "at most weight and bias"),
    "number for a message": (number(100, 3) + number(2, 3), "no layers with numbers"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_caffe_files(case: str, tmp_path: Path) -> None:
    content, reason = HOSTILE[case]
    path = tmp_path / "net.caffemodel"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        load_weights(small_model("v1-vgg16-largefov"), path)
    assert str(path) in str(caught.value)


def test_every_truncation_is_an_error_or_an_incomplete_file(tmp_path: Path) -> None:
    whole = {layer.name: len(layer.blobs) for layer in read_caffe(memoryview(SMALL))}
    for length in range(1, len(SMALL)):
        try:
            found = {layer.name: len(layer.blobs) for layer in read_caffe(memoryview(SMALL)[:length])}
        except ValueError:
            continue
        assert found == {} != whole, "cut between two layers"


@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_do_no_harm(changes: list[tuple[int, int]]) -> None:
    content = bytearray(SMALL)
    for place, value in changes:
        content[place] = value
    try:
        layers = read_caffe(memoryview(bytes(content)))
    except ValueError:
        return
    assert sum(blob.nbytes for layer in layers for blob in layer.blobs) <= 2 * len(content)


def saved(state: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream, **options)
    return stream.getvalue()


class Evil:
    """Runs code when it is unpickled, if it may."""

    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('code of the file ran')",))


def zipped(**entries: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def huge_storage() -> bytes:
    """A checkpoint of the old format whose storage says that it has 2^40 numbers."""
    content = saved({"backbone.conv1.weight": torch.zeros(1234)}, _use_new_zipfile_serialization=False)
    small = b"M" + struct.pack("<H", 1234)
    assert content.count(small) >= 1
    return content.replace(small, b"\x8a\x06" + (1 << 40).to_bytes(6, "little"))


TORCH_FILES = {
    "code": (lambda: saved({"backbone.conv1.weight": Evil()}), "holds more than tensors, which could run code"),
    "old code": (lambda: saved(Evil(), _use_new_zipfile_serialization=False), "holds more than tensors"),
    "cut": (lambda: saved({"backbone.conv1.weight": torch.ones(99)})[:-300], "cannot be read as weights"),
    "zip bomb": (lambda: zipped(**{"net/data.pkl": b"\0" * 1_000_000}), "compressed archive"),
    "a list": (lambda: saved([torch.ones(2)]), "it holds a list, not a state dict"),
    "a tensor": (lambda: saved(torch.ones(2)), "it holds a Tensor, not a state dict"),
    "an optimiser": (lambda: saved({"lr": 0.1, "step": 3}), "lr, step are not named tensors"),
    "sparse": (lambda: saved({"backbone.conv1.weight": torch.ones(2, 2).to_sparse()}), "are sparse or quantised"),
    "strange names": (lambda: saved({"encoder.weight": torch.ones(2)}), r"its names \(encoder\.weight, \.\.\.\) are none of ours"),
    "whole numbers": (lambda: saved(whole_numbers()), "holds torch.int64, not floating point"),
    "huge": (huge_storage, "allocate"),
}  # fmt: skip


def whole_numbers() -> dict[str, Any]:
    state = dict(small_model().state_dict())
    state["backbone.conv1.weight"] = state["backbone.conv1.weight"].long()
    return state


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("case", TORCH_FILES)
def test_hostile_checkpoints(case: str, tmp_path: Path) -> None:
    make, reason = TORCH_FILES[case]
    path = tmp_path / "net.pth"
    path.write_bytes(make())
    with pytest.raises(ValueError, match=reason) as caught:
        load_weights(small_model(), path)
    assert str(path) in str(caught.value)


def test_expanded_tensors_allocate_nothing(tmp_path: Path) -> None:
    """A shape of 2^40 numbers over a storage of one."""
    state = dict(small_model().state_dict())
    state["backbone.conv1.weight"] = torch.zeros(1).expand(1 << 40)
    path = tmp_path / "net.pth"
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"misshapen: backbone\.conv1\.weight \(1099511627776,\)"):
        load_weights(small_model(), path)


def test_safetensors_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    for content in (struct.pack("<Q", len(header)) + header + b"1234", struct.pack("<Q", 1 << 60) + b"{", b"{}"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as weights") as caught:
            read_file(path)
        assert str(path) in str(caught.value)


def test_keras_files_that_lie(tmp_path: Path) -> None:
    """A dataset of 2^42 bytes of which none is stored."""
    h5py = pytest.importorskip("h5py", reason="writes Keras' file")
    path = tmp_path / "net.weights.h5"
    with h5py.File(path, "w") as stored:
        stored.create_dataset("block1/vars/0", shape=(1 << 20, 1 << 20), dtype="f4", chunks=(16, 16))
    with pytest.raises(ValueError, match=r"block1/vars/0 claims 4398046511104 bytes in a file of"):
        read_file(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="cannot be read as weights"):
        read_file(path)


def endless_keras_file(path: Path) -> None:
    """The free object of a global heap says that it has 0 bytes: libhdf5 goes from it to itself, for ever."""
    h5py = pytest.importorskip("h5py", reason="writes Keras' file")
    with h5py.File(path, "w") as stored:
        group = stored.create_group("block1/layers/conv2d/vars")
        group.attrs["name"] = "block1_conv1"
        group["0"] = np.ones((3, 3, 3, 2), np.float32)
    content = bytearray(path.read_bytes())
    place = content.index(b"GCOL") + 16
    while struct.unpack_from("<H", content, place)[0]:  # objects: number, references, padding; size; bytes in eights
        place += 16 + -(-struct.unpack_from("<Q", content, place + 8)[0] // 8) * 8
    struct.pack_into("<Q", content, place + 8, 0)
    path.write_bytes(content)


def test_a_keras_file_that_libhdf5_never_comes_to_an_end_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.weights.h5"
    endless_keras_file(path)
    monkeypatch.setattr(hdf5, "SECONDS", 3)
    for read in (read_file, load_model):
        with pytest.raises(ValueError, match="came to no end within 3 s") as caught:
            read(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", r"ended while it read the file \(signal 11\)"),
        ("raise SystemExit('no room')", r"ended while it read the file \(no room\)"),
    ],
)
def test_a_crash_of_libhdf5_is_an_error(
    code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("h5py", reason="is found before the process is started")
    (tmp_path / "crashes.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(hdf5, "_CHILD", "crashes")
    path = tmp_path / "net.weights.h5"
    path.write_bytes(HDF5_MAGIC)
    with pytest.raises(ValueError, match=message):
        read_file(path)


def test_keras_arrays_together_may_not_exceed_the_file(tmp_path: Path) -> None:
    """Each is no larger than the file, but they repeat: nothing of them is stored."""
    h5py = pytest.importorskip("h5py", reason="writes Keras' file")
    path = tmp_path / "net.weights.h5"
    with h5py.File(path, "w") as stored:
        for i in range(40):
            stored.create_dataset(f"block{i}/vars/0", shape=(15000,), dtype="f4", chunks=(15000,))
    with pytest.raises(ValueError, match=r"block\d+/vars/0 claims 60000 bytes in a file of"):
        read_file(path)


def test_keras_files_that_hold_no_numbers(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="writes Keras' file")
    path = tmp_path / "net.weights.h5"
    with h5py.File(path, "w") as stored:
        stored["block1/vars/0"] = "text"
    with pytest.raises(ValueError, match=r"block1/vars/0 must hold numbers; got object"):
        read_file(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_weights(small_model(), tmp_path / "nothing.pth")


def test_blobs_are_views_of_the_file() -> None:
    """What a file claims costs nothing: arrays share its memory."""
    content = first_blob(blob(np.ones((4, 4), np.float32)))
    (found,) = read_caffe(memoryview(content))
    assert np.shares_memory(found.blobs[0], np.frombuffer(content, np.uint8))


@pytest.mark.parametrize(("package", "name"), [("safetensors", "net"), ("h5py", "net.weights.h5")])
def test_a_missing_reader_says_what_to_install(
    package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x89HDF\r\n\x1a\n" if package == "h5py" else b"1234\0\0\0\0{")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'net.* needs {package}: pip install "deeplab-crf\[weights\]"'):
        read_file(path)


def test_saving_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r'pip install "deeplab-crf\[weights\]"'):
        save_weights(small_model(), tmp_path / "net.safetensors")
