"""Forked children of a process whose threads were inside the package."""

from __future__ import annotations

import os

import pytest
import samples

if not hasattr(os, "fork"):
    pytest.skip("fork is a matter of POSIX systems", allow_module_level=True)

# Forks while a thread holds the lock, and runs the action in the child, which has a minute.
HELD = """
import importlib, os, signal, sys, threading
import numpy as np

def main(module, attribute, action):
    lock = getattr(importlib.import_module(module), attribute)
    held, done = threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        action()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    done.set()
    holder.join()
    with lock:  # the parent's lock works on
        pass
    action()
    print(module, attribute, os.waitstatus_to_exitcode(status), flush=True)
"""

NUMPY_ACTION = """
import deeplab_crf

def action():
    image = np.zeros((20, 30, 3), np.uint8)
    assert np.isfinite(deeplab_crf.dense_crf(image, logits=np.zeros((3, 20, 30)))).all()
    deeplab_crf.set_num_threads(deeplab_crf.get_num_threads())
"""

TORCH_ACTION = """
import torch
import deeplab_crf

layer = deeplab_crf.DenseCRF(kernels=(deeplab_crf.Gaussian(),))

def action():
    with torch.no_grad():
        assert layer(torch.zeros(1, 3, 20, 30)).isfinite().all()
        weight = torch.zeros(2, 3, 3, 3)
        with deeplab_crf.conv_algorithm("direct"):
            deeplab_crf.dilated_conv2d(torch.zeros(1, 3, 8, 9), weight)
"""


NUMPY_LOCKS = [("deeplab_crf.runtime.workspace", "_lock"), ("deeplab_crf.runtime.threads", "_lock")]
TORCH_LOCKS = [
    ("deeplab_crf.runtime.workspace", "_lock"),
    ("deeplab_crf.crf.lattice_cache", "_lock"),
    ("deeplab_crf.ops.conv.packed_weights", "_lock"),
    ("deeplab_crf.crf.points", "_keeping"),
]


@pytest.mark.parametrize(
    ("action", "locks"), [(NUMPY_ACTION, NUMPY_LOCKS), (TORCH_ACTION, TORCH_LOCKS)], ids=["numpy", "torch"]
)
def test_a_child_takes_a_lock_that_was_held_at_the_fork(action: str, locks: list[tuple[str, str]]) -> None:
    if action == TORCH_ACTION:
        pytest.importorskip("torch")
    calls = [f"main({module!r}, {attribute!r}, action)" for module, attribute in locks]
    done = samples.run_python("\n".join([HELD, action, *calls]))
    assert done.stdout.splitlines() == [f"{module} {attribute} 0" for module, attribute in locks], done.stderr


def test_a_thread_may_fork_while_it_holds_the_lock_itself() -> None:
    script = """
import os
from deeplab_crf.runtime.locks import ForkSafeLock

lock = ForkSafeLock()
with lock:
    child = os.fork()
if child == 0:
    with lock:
        os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert samples.run_python(script).stdout.strip() == "0"


def test_every_lock_of_the_package_is_one_that_a_child_can_take() -> None:
    """A new lock elsewhere in the package is refused here, before a child meets it."""
    from pathlib import Path

    import deeplab_crf

    folder = Path(deeplab_crf.__file__).parent
    found = [path.name for path in folder.rglob("*.py") if "threading.Lock()" in path.read_text()]
    assert found == ["locks.py"]
