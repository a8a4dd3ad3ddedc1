"""Torch checkpoints as state dicts: nothing in them is run, what wraps a state dict is taken off, and what is no tensor beside it
is left out."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Under these names training scripts keep their networks; the first that is there is taken, a running mean before the weights that
# it is the mean of. "average" and "network" are of our own checkpoints.
AVERAGES = ("average", "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
WRAPPERS = (*AVERAGES, "network", "state_dict", "model_state_dict", "model_state", "model", "net", "weights", "params")
DEEPEST = 4  # wrappers in wrappers
SHOWN = 5


class _Ignored:
    """What a harmless object of a checkpoint becomes: it takes whatever it is made from and keeps nothing."""

    def __new__(cls, *values: object, **named: object) -> _Ignored:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """The state is dropped."""


# Objects that lie beside tensors in people's checkpoints and say nothing of the network: options of the command line, NumPy's
# scalars and arrays (of NumPy 1 and 2), paths. None of these classes is used: each name stands for `_Ignored`.
_HARMLESS = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *(f"pathlib._local.{name}" for name in ("Path", "PosixPath", "WindowsPath")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"numpy.{name}" for name in ("dtype", "ndarray", "bool_", "float32", "float64", "int32", "int64")),
    *(f"numpy.dtypes.{kind}DType" for kind in ("Bool", "Float16", "Float32", "Float64", "Int32", "Int64", "UInt8")),
)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], str]:
    """Reads the state dict of a checkpoint.

    Args:
        path: A file of ``torch.save``, of either format.

    Returns:
        The tensors by name, and what was taken: the wrapper's name, and which others were there.

    Raises:
        ValueError: The file holds objects that could run code, which are named, or no state dict of tensors.
    """
    try:
        with _harmless_objects(), warnings.catch_warnings():
            # Files of another protocol are read well, or refused below, as sparse tensors are.
            warnings.filterwarnings("ignore", message="Detected pickle protocol|Validating sparse tensor")
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message advises to run the file's code
        raise ValueError(_refusal(path, str(error))) from error
    taken = ""
    for _ in range(DEEPEST):
        inner = _inner_state_dicts(stored)
        if not inner:
            break
        name = next((name for name in WRAPPERS if name in inner), None) or next(iter(inner))
        others = [other for other in inner if other != name]
        if name not in WRAPPERS and others:
            raise ValueError(f"it holds several state dicts, {', '.join(inner)}; save the one that is meant alone")
        taken = name + (f" (also there: {', '.join(others)})" if others else "")
        stored = stored[name]
    return _named_tensors(stored), taken


@contextmanager
def _harmless_objects() -> Iterator[None]:
    """While it lasts, torch reads objects of `_HARMLESS` as `_Ignored`."""
    stand_ins: list[Any] = []
    for name in _HARMLESS:
        module, _, kind = name.rpartition(".")
        stand_ins.append(type(kind, (_Ignored,), {"__module__": module, "__qualname__": kind}))
    with torch.serialization.safe_globals(stand_ins):
        yield


def _refusal(path: Path, message: str) -> str:
    """What torch refused, and how a clean file is made of it."""
    recipe = (
        "Where you trust it, save its state dict alone: "
        "stored = torch.load(PATH, map_location='cpu', weights_only=False); "
        "torch.save(stored['state_dict'], NEW) (or another key, or stored.state_dict() of a whole network)"
    )
    if "Unsupported operand" in message:
        return f"it is damaged, or saved with another pickle_protocol than 2, which could run code. {recipe}"
    refused = re.findall(r"GLOBAL ([\w.]+)", message)
    with (
        suppress(Exception),
        _harmless_objects(),
    ):  # fails for files of the format before torch 1.6: the first name stays
        refused = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    what = f" ({', '.join(sorted(refused)[:SHOWN])})" if refused else ""
    return f"it is damaged, or holds more than tensors, which could run code{what}. {recipe}"


def _inner_state_dicts(stored: object) -> dict[str, dict[Any, Any]]:
    """The dictionaries in ``stored`` that hold named tensors, or dictionaries of such, by name; those of `WRAPPERS` if any are."""
    if not isinstance(stored, dict):
        return {}
    inner = {
        name: value
        for name, value in stored.items()
        if isinstance(name, str)
        and isinstance(value, dict)
        and (_has_tensors(value) or any(isinstance(value.get(wrapper), dict) for wrapper in WRAPPERS))
    }
    known = {name: value for name, value in inner.items() if name in WRAPPERS}
    if not known and _has_tensors(stored):
        return {}
    return known or inner


def _has_tensors(values: Mapping[Any, Any]) -> bool:
    return any(isinstance(name, str) and isinstance(value, Tensor) for name, value in values.items())


def _named_tensors(stored: object) -> dict[str, Tensor]:
    if not isinstance(stored, dict) or not stored:
        raise ValueError(f"it holds a {type(stored).__name__}, not a state dict of named tensors")
    tensors = {name: value for name, value in stored.items() if isinstance(name, str) and isinstance(value, Tensor)}
    others = [str(name) for name in stored if name not in tensors and not isinstance(stored[name], _Ignored)]
    if others:
        raise ValueError(
            f"{', '.join(others[:SHOWN])} are not named tensors; save a state dict: torch.save(model.state_dict(), path)"
        )
    strange = [name for name, value in tensors.items() if value.layout != torch.strided or value.is_quantized]
    if strange:
        raise ValueError(f"{', '.join(strange[:SHOWN])} are sparse or quantised")
    return tensors
