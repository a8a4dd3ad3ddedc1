"""deeplab_crf/_native.pyi says what the compiled module has: names, parameters and their order."""

from __future__ import annotations

import ast
import re
from importlib.resources import files
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from deeplab_crf import _native

STUB = ast.parse((files("deeplab_crf") / "_native.pyi").read_text())


def _public(names: list[str]) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def _stub_names(body: list[ast.stmt]) -> set[str]:
    names = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    names += [node.target.id for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    return _public(names)


def _stub_functions(body: list[ast.stmt], owner: str = "") -> dict[str, list[str]]:
    """Parameters of every function, properties left out; methods as Class.method."""
    found = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found |= _stub_functions(node.body, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef) and not node.decorator_list:
            found[owner + node.name] = [argument.arg for argument in node.args.args]
    return found


def _parameters(function: Any) -> list[str]:
    """From the signature that pybind11 writes at the head of the docstring."""
    signature = re.search(r"\((.*)\) -> ", function.__doc__.splitlines()[0])
    assert signature is not None
    return re.findall(r"(?:^|, )(\w+): ", signature[1])


def _methods(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


FUNCTIONS = _stub_functions(STUB.body)


def test_names_agree() -> None:
    assert _stub_names(STUB.body) == _public(dir(_native))


@pytest.mark.parametrize(
    "node", [node for node in STUB.body if isinstance(node, ast.ClassDef)], ids=lambda node: node.name
)
def test_members_agree(node: ast.ClassDef) -> None:
    if node.name.startswith("_"):
        assert not hasattr(_native, node.name), "a description of a dict, for the type checker alone"
    else:
        assert _stub_names(node.body) == _methods(getattr(_native, node.name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_parameters_agree(name: str) -> None:
    target: ModuleType | Any = _native
    for part in name.split("."):
        target = getattr(target, part)
    assert _parameters(target) == FUNCTIONS[name]


@pytest.mark.parametrize(("suffix", "twin"), [("F32", "F64"), ("f32", "f64")])
def test_the_twins_of_both_precisions_agree(suffix: str, twin: str) -> None:
    assert any(suffix in name for name in FUNCTIONS)
    for name, parameters in FUNCTIONS.items():
        assert FUNCTIONS[name.replace(suffix, twin)] == parameters


def _fields(name: str) -> set[str]:
    """Keys of a TypedDict of the stub."""
    (node,) = (node for node in STUB.body if isinstance(node, ast.ClassDef) and node.name == name)
    return {
        item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }


def test_build_info_agrees() -> None:
    assert set(_native.build_info()) == _fields("_BuildInfo")


@pytest.mark.parametrize("missing", sorted(_fields("_MeanFieldOptions")))
def test_mean_field_needs_each_of_its_options(missing: str) -> None:
    """So none of them is a leftover; and together they suffice."""
    unary, q = np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32)
    options = {"start_from_q": False, "iterations": 0, "damping": 0.0, "tolerance": 0.0, "threads": 1, "order": 0}
    assert set(options) == _fields("_MeanFieldOptions")
    arguments = (3, 2, unary.ctypes.data, q.ctypes.data, [])
    assert _native.mean_field_f32(*arguments, options)[0] == 0
    np.testing.assert_array_equal(q, 0.5)
    with pytest.raises(KeyError, match=missing):
        _native.mean_field_f32(*arguments, {key: value for key, value in options.items() if key != missing})
