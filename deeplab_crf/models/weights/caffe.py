"""Reads the blobs of a .caffemodel: protocol buffers' wire format by hand, without Caffe and without generated code.

Both layouts of NetParameter: the old ``layers`` (field 2, V1LayerParameter) and ``layer`` (field 100, LayerParameter). Every length
is checked against what is there before it is used, and arrays are views of the file's bytes: nothing is allocated because a number
in the file says so.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

# Field numbers of caffe.proto.
NET_OLD_LAYERS, NET_LAYER = 2, 100
OLD_NAME, OLD_TYPE, OLD_BLOBS = 4, 5, 6
NEW_NAME, NEW_TYPE, NEW_BLOBS = 1, 2, 7
BLOB_OLD_SHAPE, BLOB_DATA, BLOB_SHAPE, BLOB_DOUBLE_DATA = (1, 2, 3, 4), 5, 7, 8
SHAPE_DIM = 1
INNER_PRODUCT_OLD_TYPE = 14
MOST_AXES = 32  # Caffe's own limit


@dataclass(frozen=True)
class CaffeLayer:
    """A layer that has numbers. blobs: float32 or float64 arrays, views of the file. fully_connected: an InnerProduct."""

    name: str
    blobs: tuple[NDArray[np.floating], ...]
    fully_connected: bool = False


def read_caffe(content: memoryview) -> list[CaffeLayer]:
    """The layers of a NetParameter that have blobs, in the order of the file. Raises ValueError for what is none."""
    layers = []
    for field, kind, value in _fields(content):
        if field in (NET_OLD_LAYERS, NET_LAYER) and kind == BYTES:
            layer = _layer(_message(value), old=field == NET_OLD_LAYERS)
            if layer is not None:
                layers.append(layer)
    return layers


def _layer(content: memoryview, *, old: bool) -> CaffeLayer | None:
    """The layer, or None where it has no blobs (data, ReLU, pooling)."""
    name_field, type_field, blobs_field = (OLD_NAME, OLD_TYPE, OLD_BLOBS) if old else (NEW_NAME, NEW_TYPE, NEW_BLOBS)
    name, fully_connected, blobs = "", False, []
    for field, kind, value in _fields(content):
        if field == name_field and kind == BYTES:
            name = _text(value)
        elif field == type_field:
            fully_connected = value == INNER_PRODUCT_OLD_TYPE if old else bytes(_message(value)) == b"InnerProduct"
        elif field == blobs_field and kind == BYTES:
            blobs.append(_message(value))
    if not blobs:
        return None
    return CaffeLayer(
        name, tuple(_blob(blob, f"blob {i} of layer {name!r}") for i, blob in enumerate(blobs)), fully_connected
    )


def _blob(content: memoryview, what: str) -> NDArray[np.floating]:
    """BlobProto: packed or unpacked numbers and their shape, old (num, channels, height, width) or new (any number of axes)."""
    old_shape, shape = [0, 0, 0, 0], None
    singles, doubles = _Numbers("<f4"), _Numbers("<f8")
    for field, kind, value in _fields(content, singles):
        if field in BLOB_OLD_SHAPE and kind == VARINT:
            old_shape[field - 1] = _whole(value)
        elif field == BLOB_SHAPE and kind == BYTES:
            shape = _shape(_message(value), what)
        elif field == BLOB_DATA and kind == BYTES:
            singles.add(_message(value), what)
        elif field == BLOB_DOUBLE_DATA and kind == BYTES:
            doubles.add(_message(value), what)
    numbers = doubles if doubles.parts else singles
    values = numbers.joined()
    sizes = tuple(old_shape) if shape is None else shape
    if prod(sizes) != values.size:
        raise ValueError(f"{what} says that it has shape {sizes}, but {values.size} numbers follow")
    return values.reshape(sizes)


def _shape(content: memoryview, what: str) -> tuple[int, ...]:
    sizes: list[int] = []
    for field, kind, value in _fields(content):
        if field != SHAPE_DIM:
            continue
        if kind == VARINT:
            sizes.append(_whole(value))
        elif kind == BYTES:
            packed, place = _message(value), 0
            while place < len(packed):
                size, place = _varint(packed, place)
                sizes.append(size)
        if len(sizes) > MOST_AXES:
            raise ValueError(f"{what} has more than {MOST_AXES} axes")
    return tuple(sizes)


class _Numbers:
    """Repeated floats of one field, as views of the file; one copy where they came in several pieces."""

    def __init__(self, dtype: str) -> None:
        self.dtype = np.dtype(dtype)
        self.parts: list[NDArray[np.floating]] = []

    def add(self, packed: memoryview, what: str) -> None:
        if len(packed) % self.dtype.itemsize:
            raise ValueError(f"{what} has {len(packed)} bytes of numbers, no multiple of {self.dtype.itemsize}")
        self.parts.append(np.frombuffer(packed, self.dtype))

    def add_unpacked(self, content: memoryview, place: int) -> int:
        """Takes the run of unpacked numbers (tag, four bytes) that starts at ``place``; returns where it ends."""
        stride = 1 + self.dtype.itemsize
        count = (len(content) - place) // stride
        rows = np.frombuffer(content, np.uint8, count * stride, place).reshape(count, stride)
        others = np.flatnonzero(rows[:, 0] != rows[0, 0])
        run = rows[: int(others[0]) if len(others) else count]
        self.parts.append(np.ascontiguousarray(run[:, 1:]).reshape(-1).view(self.dtype))
        return place + run.size

    def joined(self) -> NDArray[np.floating]:
        if len(self.parts) == 1:
            return self.parts[0]
        return np.concatenate(self.parts) if self.parts else np.empty(0, self.dtype)


def _fields(content: memoryview, unpacked: _Numbers | None = None) -> Iterator[tuple[int, int, int | memoryview]]:
    """Field number, wire type and value (bytes for `BYTES`, a number else) of each field of a message.

    unpacked: takes the numbers of field `BLOB_DATA` that come one by one; a run of them is read at once.
    """
    place, end = 0, len(content)
    while place < end:
        start = place
        tag, place = _varint(content, place)
        field, kind = tag >> 3, tag & 7
        if field == 0:
            raise ValueError("a field has number 0")
        if kind == VARINT:
            value, place = _varint(content, place)
            yield field, kind, value
        elif kind == BYTES:
            length, place = _varint(content, place)
            if length > end - place:
                raise ValueError(
                    f"a field says that {length} bytes follow, but there are {end - place}: the file is cut off or damaged"
                )
            yield field, kind, content[place : place + length]
            place += length
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
            if length > end - place:
                raise ValueError("a number is cut off")
            if unpacked is not None and field == BLOB_DATA and kind == FIXED32:
                place = unpacked.add_unpacked(content, start)
                continue
            yield field, kind, struct.unpack_from("<I" if kind == FIXED32 else "<Q", content, place)[0]
            place += length
        else:
            raise ValueError(f"a field has wire type {kind}, which Caffe does not use")


def _varint(content: memoryview, place: int) -> tuple[int, int]:
    """The number that starts at ``place``, and where the next field does."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(content):
            raise ValueError("a number is cut off")
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number has more than 10 bytes")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number stands where a message should")
    return value


def _whole(value: int | memoryview) -> int:
    assert isinstance(value, int)
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode("utf-8", errors="replace")
