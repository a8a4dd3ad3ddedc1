"""Daemon threads that are inside native code when the interpreter exits."""

from __future__ import annotations

from pathlib import Path

import pytest
import samples

# A thread calls over and over while the main one ends. The object's finaliser runs when the interpreter is past the point from
# which threads may no longer take the GIL, and waits there until the thread has tried to.
EXIT = """
import sys, threading, time
import numpy as np

class Last:
    def __init__(self):
        self.sleep = time.sleep

    def __del__(self):
        self.sleep(0.5)

{setup}
call()
started = threading.Event()

def work():
    while True:
        call()
        started.set()

threading.Thread(target=work, daemon=True).start()
started.wait()
sys.last = Last()
print("end")
"""

NUMPY = """
from deeplab_crf import MeanField, PermutohedralLattice
from deeplab_crf.core.image_points import ImagePoints
from deeplab_crf.core.mean_field import pack_unary

features = np.random.default_rng(0).normal(size=(20000, 3)).astype(np.float32)
lattice = PermutohedralLattice(features, threads=2)
model = MeanField(20000, 4, threads=2)
model.add_kernel(lattice, 1.0)
values, unary = np.ones((20000, 4), np.float32), np.ones((4, 20000), np.float32)
packed = pack_unary(unary)
points, image = ImagePoints(200, 100, np.dtype(np.float32)), np.zeros((200, 100, 3), np.uint8)
call = {call}
"""

# What the operators of the torch API call, without torch: its own functions end the process in such a thread.
BATCHES = """
sys.path.insert(0, {tests!r})
import native_batch as native
from deeplab_crf import _native

rng = np.random.default_rng(0)
features = rng.normal(size=(1, 20000, 3)).astype(np.float32)
lattices = native.Lattices(features, 2)
values = np.ones((1, 20000, 4), np.float32)
field = native.MeanField([native.Kernel(lattices, np.ones((), np.float32))], 2, threads=2)
out, trace, _ = field.run(values)
many, more = np.ones(2**21, np.float32), np.empty(2**21, np.float32)
axis = (40, 40, 3, 1, 1, 1)
shape = (1, 32, 32, axis, axis)
x, packed, result = (np.zeros(2**20, np.float32) for _ in range(3))
address = native.address
call = {call}
"""


def check_exit(setup: str) -> None:
    done = samples.run_python(EXIT.format(setup=setup))
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "end", "")


@pytest.mark.parametrize(
    "call",
    [
        "lambda: PermutohedralLattice(features, threads=2)",
        "lambda: lattice.filter(values)",
        "lambda: model.inference(packed, 3, check_finite=False)",
        "lambda: pack_unary(unary, threads=2)",
        "lambda: points.colour_features((80.0, 80.0), image, (13.0,) * 3)",
    ],
)
def test_the_interpreter_exits_while_a_thread_is_inside(call: str) -> None:
    check_exit(NUMPY.format(call=call))


@pytest.mark.parametrize(
    "call",
    [
        "lambda: native.Lattices(features, 2)",
        "lambda: lattices.filter(values)",
        "lambda: field.run(values)",
        "lambda: field.gradient(out, trace, values, [native.KernelGradient()])",
        "lambda: _native.fingerprint(address(many), many.size, 2)",
        "lambda: _native.transpose_planes(address(many), 1, 2048, 1024, address(more), 2)",
        "lambda: _native.direct(shape, address(x), address(packed), (0, 0, True), address(result), 2)",
        "_native.trim_memory",
    ],
)
def test_the_interpreter_exits_while_a_thread_is_inside_a_batch(call: str) -> None:
    check_exit(BATCHES.format(tests=str(Path(__file__).parents[1] / "support"), call=call))
