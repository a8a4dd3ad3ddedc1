"""Reads Keras' HDF5 file in a process of its own: ``python -m deeplab_crf.models.weights.hdf5_child FILE SECONDS``.

A damaged file can make libhdf5 loop for ever, crash or allocate without bound, so `hdf5.read_hdf5` starts this with limits. It
writes one line of JSON, an error or the name, dtype and shape of every array, and then the arrays' bytes. No torch is imported.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

# Address space beyond what the interpreter starts with: for libraries, and for each byte of the file.
MEMORY, MEMORY_PER_BYTE = 1 << 31, 8
MOST_DATA = 4  # bytes of all arrays together for each byte of the file: compressed ones are larger than what is stored


def main(path: str, seconds: int) -> None:
    """Write the arrays of ``path``, or why they cannot be read, to standard output."""
    size = os.path.getsize(path)
    _limit(seconds, MEMORY + MEMORY_PER_BYTE * size)
    try:
        arrays = _read(path, size)
    except Exception as error:  # h5py raises nearly anything
        print(json.dumps({"error": " ".join(str(error).split()) or type(error).__name__}))
        return
    header = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
    sys.stdout.buffer.write(json.dumps({"arrays": header}).encode() + b"\n")
    for array in arrays.values():
        sys.stdout.buffer.write(memoryview(array).cast("B") if array.size else b"")


def _limit(seconds: int, memory: int) -> None:
    """The time limit holds here too, a little later: the parent, which keeps it, may be killed meanwhile."""
    try:
        import resource
    except ImportError:  # Windows
        return
    try:
        with open("/proc/self/statm", encoding="ascii") as stream:
            memory += int(stream.read().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux
        pass
    for what, limit in ((resource.RLIMIT_CPU, seconds + 5), (resource.RLIMIT_AS, memory)):
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _read(path: str, size: int) -> dict[str, Any]:
    """Keras' layout: a group ``vars`` with the attribute ``name``, the layer's, and datasets 0 (kernel) and 1 (bias)."""
    import h5py
    import numpy as np

    arrays: dict[str, Any] = {}
    left = MOST_DATA * size

    def visit(name: str, node: Any) -> None:
        nonlocal left
        if not isinstance(node, h5py.Dataset):
            return
        left -= node.nbytes
        if node.nbytes > size or left < 0 or node.is_virtual or node.external:
            raise ValueError(f"{name} claims {node.nbytes} bytes in a file of {size}")
        if node.dtype.kind not in "fiu":
            raise ValueError(f"{name} must hold numbers; got {node.dtype}")
        layer = node.parent.attrs.get("name", node.parent.name.strip("/"))
        key = f"{layer}/{name.rsplit('/', 1)[-1]}"
        if key in arrays:
            raise ValueError(f"two layers are called {layer}")
        arrays[key] = np.ascontiguousarray(node[()]).reshape(node.shape)

    with h5py.File(path, "r") as stored:
        stored.visititems(visit)
    return arrays


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
