"""Writes .caffemodel files byte by byte, in both layouts of NetParameter: what Caffe's protocol buffers would write."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Blobs = Sequence[NDArray[np.floating]]


@dataclass(frozen=True)
class Style:
    """old_layout: ``layers`` of V1LayerParameter instead of ``layer``. old_shape: num, channels, height, width instead of a shape.
    packed: numbers in one run, else each with its own tag."""

    old_layout: bool = False
    old_shape: bool = False
    packed: bool = True


V1_FILE = Style(old_layout=True, old_shape=True)
V2_FILE = Style()


def varint(value: int) -> bytes:
    """A number in base 128, least significant digits first."""
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def number(field: int, value: int) -> bytes:
    """A field that holds a varint."""
    return varint(field << 3) + varint(value)


def message(field: int, content: bytes) -> bytes:
    """A field that holds bytes."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def blob(array: NDArray[np.floating], style: Style = V2_FILE) -> bytes:
    """BlobProto. The old shape has four sizes for whatever array: a vector of 64 is 1 x 1 x 1 x 64."""
    if style.old_shape:
        sizes = (1,) * (4 - array.ndim) + array.shape
        shape = b"".join(number(i, size) for i, size in enumerate(sizes, start=1))
    else:
        shape = message(7, message(1, b"".join(varint(size) for size in array.shape)))
    values = array.astype("<f4").ravel()
    data = message(5, values.tobytes()) if style.packed else b"".join(b"\x2d" + struct.pack("<f", v) for v in values)
    return shape + data


def layer(name: str, blobs: Blobs, style: Style = V2_FILE, kind: str = "Convolution") -> bytes:
    """One layer of the net."""
    parts = [blob(array, style) for array in blobs]
    if style.old_layout:
        types = {"Convolution": 4, "InnerProduct": 14, "ReLU": 18}
        return message(2, number(5, types[kind]) + message(4, name.encode()) + b"".join(message(6, p) for p in parts))
    return message(100, message(1, name.encode()) + message(2, kind.encode()) + b"".join(message(7, p) for p in parts))


def net(layers: Mapping[str, Blobs], style: Style = V2_FILE) -> bytes:
    """A NetParameter with a name and layers, of which one has no numbers."""
    rest = b"".join(layer(name, blobs, style) for name, blobs in layers.items())
    return message(1, b"a net") + layer("relu1", [], style, "ReLU") + rest
