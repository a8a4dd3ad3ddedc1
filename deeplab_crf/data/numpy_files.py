"""NumPy files, whose headers are looked at before any memory is taken for their numbers."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class StoredArray:
    """An array in a file that is open: its header, and how to get the rest.

    Attributes:
        shape: As in the header.
        dtype: As in the header; object where the file holds a pickle.
        read: Reads the numbers. Raises ValueError that names the file, also where they are a pickle.
        rest: Reads the bytes after the header of a .npy file.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], NDArray[Any]]
    rest: Callable[[], bytes]


@contextmanager
def stored_arrays(path: Path) -> Iterator[dict[str, StoredArray]]:
    """Open a .npz file: its arrays by name; or a .npy file: its only array, called "".

    Raises ValueError that names the file where it is missing, damaged, or shorter than its header says.
    """
    with _attempt(path, lambda: open(path, "rb")) as stream:
        magic = stream.read(4)
        stream.seek(0)
        if magic not in (b"PK\x03\x04", b"PK\x05\x06"):
            yield {"": _attempt(path, lambda: _one(path, stream))}
            return
        with _attempt(path, lambda: zipfile.ZipFile(stream)) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            yield {info.filename[:-4]: _attempt(path, partial(_member, path, archive, info)) for info in members}


def _one(path: Path, stream: IO[bytes]) -> StoredArray:
    shape, dtype = _header(stream, os.fstat(stream.fileno()).st_size)
    first = stream.tell()

    def read() -> NDArray[Any]:
        stream.seek(0)
        return npy.read_array(stream, allow_pickle=False)

    def rest() -> bytes:
        stream.seek(first)
        return stream.read()

    return StoredArray(shape, dtype, lambda: _attempt(path, read), lambda: _attempt(path, rest))


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> StoredArray:
    with archive.open(info) as stream:
        shape, dtype = _header(stream, info.file_size)

    def read() -> NDArray[Any]:
        with archive.open(info) as stream:
            return npy.read_array(stream, allow_pickle=False)

    def rest() -> bytes:
        raise ValueError(f"{path}: {info.filename} holds Python objects; save an array of numbers")

    return StoredArray(shape, dtype, lambda: _attempt(path, read), rest)


def _header(stream: IO[bytes], available: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype. Raises ValueError where the numbers do not fit into the ``available`` bytes."""
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version[0]}.{version[1]} of the format is not for arrays of numbers")
    shape, _, dtype = npy.read_array_header_1_0(stream) if version == (1, 0) else npy.read_array_header_2_0(stream)
    if not dtype.hasobject and stream.tell() + math.prod(shape) * dtype.itemsize > available:
        raise ValueError(f"it ends before the numbers of an array of shape {shape} and {dtype} do")
    return shape, dtype


def _attempt(path: Path, action: Callable[[], T]) -> T:
    """Do what may fail on a damaged file, in nearly any way. Raises ValueError that names the file."""
    try:
        return action()
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as a NumPy file ({str(error) or type(error).__name__})") from error
