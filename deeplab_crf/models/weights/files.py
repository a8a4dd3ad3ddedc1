"""Weights files as named tensors, whatever their format; nothing in them is trusted."""

from __future__ import annotations

import mmap
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deeplab_crf.models.weights.caffe import read_caffe
from deeplab_crf.models.weights.checkpoint import read_checkpoint
from deeplab_crf.models.weights.hdf5 import read_hdf5
from deeplab_crf.models.weights.other_files import HEAD, kind_of_archive, kind_of_file

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"


@dataclass(frozen=True)
class RawWeights:
    """What a file holds. kind: "caffe", "hdf5", "torch" or "safetensors". tensors: by the file's own names; a Caffe layer's blobs
    are ``name/0``, ``name/1``, ... fully_connected: names of Caffe layers that are InnerProducts. metadata: of safetensors. taken:
    which of a checkpoint's dictionaries the tensors are, and what else there was."""

    kind: str
    tensors: Mapping[str, Tensor]
    fully_connected: frozenset[str] = frozenset()
    metadata: Mapping[str, str] = field(default_factory=dict)
    taken: str = ""


def read_file(path: Path) -> RawWeights:
    """Read ``path``; its first bytes say what it is.

    .caffemodel, .safetensors, torch checkpoints (with ``weights_only=True`` alone: no code of theirs runs) and Keras' .weights.h5.
    Raises ValueError that names the file and what is wrong with it, FileNotFoundError, and ImportError where a reader is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as stream:
        head = stream.read(HEAD)
    with _named(path):
        if not head:
            raise ValueError("it is empty")
        if kind := kind_of_file(head):
            raise ValueError(kind)
        return _reader(path, head)(path)


def _reader(path: Path, head: bytes) -> Callable[[Path], RawWeights]:
    if head.startswith(HDF5_MAGIC):
        return _read_hdf5
    if head.startswith(ZIP_MAGIC):
        return _read_zip
    if path.suffix == ".safetensors" or head[4:9] == b"\0\0\0\0{":  # the header's length in 8 bytes, then JSON
        return _read_safetensors
    if head.startswith(PICKLE_MAGIC):
        return _read_torch
    return _read_caffe


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever a reader raises becomes a ValueError that names the file; missing readers and Ctrl-C pass."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # unpicklers raise nearly anything
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: cannot be read as weights: {text[:700]}") from error


def _read_caffe(path: Path) -> RawWeights:
    layers = read_caffe(_mapped(path))
    if not layers:
        raise ValueError(
            "no layers with numbers in it. Known: .caffemodel, .safetensors, torch checkpoints and Keras' .weights.h5"
        )
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        for i, blob in enumerate(layer.blobs):
            name = f"{layer.name}/{i}"
            if name in tensors:
                raise ValueError(f"two layers are called {layer.name!r}")
            tensors[name] = _viewed(blob)
    return RawWeights("caffe", tensors, frozenset(layer.name for layer in layers if layer.fully_connected))


def _mapped(path: Path) -> memoryview:
    """The file's bytes, which are read when they are used."""
    with open(path, "rb") as stream:
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def _viewed(array: Any) -> Tensor:
    """The array as a tensor that shares its memory, which nobody here writes to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _read_safetensors(path: Path) -> RawWeights:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise ImportError(f'{path} needs safetensors: pip install "deeplab-crf[weights]"') from error
    with safe_open(path, framework="pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
        return RawWeights("safetensors", tensors, metadata=stored.metadata() or {})


def _read_zip(path: Path) -> RawWeights:
    """A torch checkpoint of 1.6 or later. Its entries are stored as they are, so that together they are no larger than the file."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if kind := kind_of_archive([entry.filename for entry in entries]):
        raise ValueError(kind)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is a compressed archive, as torch writes none: unpack it, and pack it without compression")
    if sum(entry.file_size for entry in entries) > os.path.getsize(path):
        raise ValueError("its entries claim to be larger than the file")
    return _read_torch(path)


def _read_torch(path: Path) -> RawWeights:
    tensors, taken = read_checkpoint(path)
    return RawWeights("torch", tensors, taken=taken)


def _read_hdf5(path: Path) -> RawWeights:
    return RawWeights("hdf5", {name: _viewed(array) for name, array in read_hdf5(path).items()})
