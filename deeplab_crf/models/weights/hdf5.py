"""Keras' HDF5 files, read by a process of its own that has limits: libhdf5 loops for ever on some damaged files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SECONDS, BYTES_PER_SECOND = 30, 5_000_000  # a file on a slow disk may take longer than a small one
_CHILD = "deeplab_crf.models.weights.hdf5_child"


def read_hdf5(path: Path) -> dict[str, NDArray[Any]]:
    """Returns the arrays of ``path`` by ``layer/number``.

    Raises:
        ImportError: h5py is not installed.
        ValueError: The file is damaged: it says why, also where libhdf5 crashed or did not come to an end.
    """
    if find_spec("h5py") is None:
        raise ImportError(f'{path} needs h5py: pip install "deeplab-crf[weights]"')
    seconds = SECONDS + os.path.getsize(path) // BYTES_PER_SECOND
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", _CHILD, str(path.absolute()), str(seconds)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"the HDF5 library came to no end within {seconds} s: the file is damaged") from None
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        why = f"signal {-done.returncode}" if done.returncode < 0 else "".join(last)
        raise ValueError(f"the HDF5 library ended while it read the file ({why}): the file is damaged")
    return _arrays(done.stdout)


def _arrays(output: bytes) -> dict[str, NDArray[Any]]:
    """Takes apart what the child wrote; the arrays are views of it."""
    place = output.index(b"\n") + 1
    said = json.loads(output[:place])
    if "error" in said:
        raise ValueError(said["error"])
    arrays: dict[str, NDArray[Any]] = {}
    for name, dtype, shape in said["arrays"]:
        arrays[name] = np.frombuffer(output, dtype, prod(shape), place).reshape(shape)
        place += arrays[name].nbytes
    return arrays
