"""deeplab_crf/_cuda.pyi says what the CUDA module has, and `native_info` what it can do here."""

from __future__ import annotations

import ast
import re
from importlib.resources import files
from types import ModuleType
from typing import Any

import pytest
from emulated import ROOT

import deeplab_crf
from deeplab_crf import _native

STUB = ast.parse((files("deeplab_crf") / "_cuda.pyi").read_text())
FUNCTIONS = {
    node.name: [argument.arg for argument in node.args.args] for node in STUB.body if isinstance(node, ast.FunctionDef)
}
CONSTANTS = {
    node.target.id for node in STUB.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
}


def _names(module: ModuleType) -> set[str]:
    return {name for name in dir(module) if not name.startswith("_")}


def _parameters(function: Any) -> list[str]:
    """From the signature that pybind11 writes at the head of the docstring."""
    signature = re.search(r"\((.*)\) -> ", function.__doc__.splitlines()[0])
    assert signature is not None
    return re.findall(r"(?:^|, )(\w+): ", signature[1])


def _check(module: ModuleType, more: set[str]) -> None:
    assert _names(module) == {*FUNCTIONS, *CONSTANTS, *more}
    for name, parameters in FUNCTIONS.items():
        assert _parameters(getattr(module, name)) == parameters
    assert set(module.build_info()) == {"architectures", "compiler"}


def test_the_stub_and_the_emulated_module_agree(emulated: ModuleType) -> None:
    _check(emulated, {"set_thread_order"})
    assert emulated.build_info()["architectures"] == "emulated"
    assert emulated.devices() == (1, "")


def test_the_stub_and_the_module_agree() -> None:
    if not _native.build_info()["cuda_built"]:
        pytest.skip("deeplab_crf was built without CUDA")
    from deeplab_crf import _cuda

    _check(_cuda, set())
    assert "90" in _cuda.build_info()["architectures"]


def test_the_twins_of_both_precisions_agree() -> None:
    for name, parameters in FUNCTIONS.items():
        assert FUNCTIONS[name.replace("f32", "f64")] == parameters


def test_no_call_of_cuda_allocates_or_copies() -> None:
    """So that all of it can be captured in a graph. cudaStreamSynchronize is the debug switch's."""
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".cu", ".cuh", ".cpp", ".h"}]
    if not sources:
        pytest.skip("reads the sources")
    calls = {call for path in sources for call in re.findall(r"\b(cuda[A-Z]\w*)\(", path.read_text())}
    devices = {"cudaGetDeviceCount", "cudaGetDevice", "cudaSetDevice"}
    errors = {"cudaGetLastError", "cudaGetErrorString", "cudaGetErrorName"}
    assert calls <= {*devices, *errors, "cudaMemsetAsync", "cudaStreamIsCapturing", "cudaStreamSynchronize"}


def test_what_is_not_usable_comes_with_a_cure() -> None:
    cuda = deeplab_crf.native_info()["cuda"]
    assert set(cuda) == {"built", "usable", "devices", "architectures", "compiler", "why", "cure"}
    assert cuda["usable"] == (cuda["devices"] > 0)
    assert bool(cuda["why"]) == bool(cuda["cure"]) == (not cuda["usable"])
    assert (cuda["architectures"] is not None) == cuda["built"]


@pytest.mark.skipif(deeplab_crf.native_info()["cuda"]["usable"], reason="there is a GPU")
def test_a_kernel_without_a_device_says_so() -> None:
    if not _native.build_info()["cuda_built"]:
        pytest.skip("deeplab_crf was built without CUDA")
    from deeplab_crf import _cuda

    with pytest.raises(RuntimeError, match="cuda"):
        _cuda.lattice_filter_f32((0, 0), (0, 0, 0, _cuda.structure_size((1, 5, 2), 7)), (1, 5, 2), 0, 0, 3, 0, False)
