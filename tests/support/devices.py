"""The devices that tests of operators and layers run on: the CPU, CUDA emulated on the CPU, and CUDA.

A module asks for all of them with ``pytestmark = pytest.mark.usefixtures("device")``; what is the CPU's alone is marked
``cpu_only``. Emulated: tensors lie on the CPU, and the operators call the code of ops/cuda with the module _emulated. CUDA:
new tensors are made there by default, and so are the tensors among the test module's constants.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

from deeplab_crf.ops.conv import cuda as conv_cuda
from deeplab_crf.ops.cuda_backend import Engine
from deeplab_crf.ops.lattice import cuda as lattice_cuda
from deeplab_crf.ops.lattice import operators as lattice
from deeplab_crf.ops.library import CUDA_KERNELS
from deeplab_crf.ops.mean_field import cuda as mean_field_cuda


def device_names(config: pytest.Config) -> list[object]:
    """Parameters of the fixture `device`. CUDA where there is one, and wherever it is asked for by -m cuda."""
    names: list[object] = ["cpu", "emulated"]
    if torch.cuda.is_available() or "cuda" in config.option.markexpr.split():
        names.append(pytest.param("cuda", marks=pytest.mark.cuda))
    return names


def opcheck(operator: Any, arguments: tuple[Any, ...], **options: Any) -> None:
    """`torch.library.opcheck` without the warning that its own harness gives from torch 2.14 on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
        torch.library.opcheck(operator, arguments, **options)


class Device(NamedTuple):
    """What a test runs on. where: its tensors lie there. is_reference: its results have the bits of the NumPy door."""

    name: str
    where: torch.device

    @property
    def is_reference(self) -> bool:
        return self.name == "cpu"


@contextmanager
def running_on(name: str, constants: ModuleType, emulated: Callable[[], ModuleType]) -> Iterator[Device]:
    """Makes ``name`` the device of whatever follows in a test of the module ``constants``."""
    cpu = torch.device("cpu")
    if name == "cpu":
        yield Device(name, cpu)
    elif name == "emulated":
        with _emulation(emulated()):
            yield Device(name, cpu)
    else:
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        with torch.device("cuda"), pytest.MonkeyPatch.context() as patch:
            for constant, value in vars(constants).items():
                if isinstance(value, torch.Tensor):
                    patch.setattr(constants, constant, value.cuda())
            yield Device(name, torch.device("cuda", torch.cuda.current_device()))


@contextmanager
def _emulation(module: ModuleType) -> Iterator[None]:
    """The CPU's tensors in the hands of the CUDA kernels."""
    engine = Engine(module, (0, 0))
    with pytest.MonkeyPatch.context() as patch:
        for part in (conv_cuda, lattice_cuda, mean_field_cuda):
            patch.setattr(part, "engine_for", lambda tensor: engine)
        patch.setattr(lattice, "kernels_of", lambda tensor: lattice_cuda)
        kernels = torch.library.Library("deeplab_crf", "IMPL")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Warning only once for all operators")
                for name, kernel in CUDA_KERNELS.items():
                    kernels.impl(name, kernel, "CPU", allow_override=True)
            yield
        finally:
            kernels._destroy()
