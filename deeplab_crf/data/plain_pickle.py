"""Pickles of dictionaries, numbers, texts, NumPy arrays and CPU tensors, read without running anything that they name.

A pickle is a program that may call any function. Here its instructions are carried out by this module alone: the few functions
that arrays and tensors need are imitated, everything else is an error, and no array is larger than the bytes it is made of.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

_MOST_INSTRUCTIONS = 200_000
_CODES = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})
_OBJECT = "O8"

# What torch calls the storages of its tensors.
_STORAGES = {
    "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "LongStorage": "i8", "IntStorage": "i4",
    "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "b1",
}  # fmt: skip

Functions: TypeAlias = Mapping[tuple[str, str], Callable[..., Any]]


@dataclass(frozen=True)
class _Name:
    """A function or class that a pickle names."""

    module: str
    name: str


@dataclass
class _DType:
    """A dtype on its way: a code, and the order of bytes that comes later."""

    code: str
    order: str = "<"

    def build(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|", "=") or any(field is not None for field in state[2:5]):
            raise ValueError("an array of structures")
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        if self.code not in _CODES:
            raise ValueError(f"an array of {self.code!r}")
        return np.dtype(self.order.replace("|", "=") + self.code)


@dataclass
class _Array:
    """An array on its way. value: an array, or what a whole object array of one element holds."""

    value: Any = None

    def build(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if dtype.code == _OBJECT:
            if shape != () or not isinstance(data, list) or len(data) != 1:
                raise ValueError(f"an array of objects of shape {shape}")
            self.value = data[0]
            return
        self.value = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if fortran else "C")


def read_plain_pickle(data: bytes) -> Any:
    """Return what a pickle holds: dictionaries, lists, tuples, numbers, texts, None, and NumPy arrays, of tensors too.

    Raises ValueError for anything else, and for a damaged pickle.
    """
    try:
        return _plain(_Machine(_FUNCTIONS).run(io.BytesIO(data)))
    except ValueError:
        raise
    except Exception as error:  # the stack of a damaged pickle holds anything
        raise ValueError(f"the pickle is damaged ({type(error).__name__}: {error})") from error


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, _Array) else value


class _Machine:
    """The stack and the memory of a pickle that is being read."""

    def __init__(self, functions: Functions, persistent: Callable[[Any], Any] | None = None) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.functions, self.persistent = functions, persistent

    def run(self, stream: io.BytesIO) -> Any:
        """Read one pickle, and leave the stream behind it."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > _MOST_INSTRUCTIONS:
                raise ValueError(f"more than {_MOST_INSTRUCTIONS} instructions")
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in _PUSHES:
                self.stack.append(argument)
            elif opcode.name in _MAKERS:
                self.stack.append(_MAKERS[opcode.name]())
            elif opcode.name in _STEPS:
                getattr(self, f"_{opcode.name.lower()}")(argument)
            else:
                raise ValueError(f"the instruction {opcode.name}")
        raise ValueError("no end")

    def _pop(self, count: int) -> list[Any]:
        if count > len(self.stack) - (self.marks[-1] if self.marks else 0):
            raise ValueError("an empty stack")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def _pop_mark(self) -> list[Any]:
        first = self.marks.pop()
        taken = self.stack[first:]
        del self.stack[first:]
        return taken

    def _proto(self, _: Any) -> None: ...

    def _frame(self, _: Any) -> None: ...

    def _mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _binput(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    _long_binput = _binput

    def _binget(self, index: int) -> None:
        self.stack.append(self.memo[index])

    _long_binget = _binget

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._pop_mark()))

    def _tuple1(self, _: Any) -> None:
        self.stack.append(tuple(self._pop(1)))

    def _tuple2(self, _: Any) -> None:
        self.stack.append(tuple(self._pop(2)))

    def _tuple3(self, _: Any) -> None:
        self.stack.append(tuple(self._pop(3)))

    def _append(self, _: Any) -> None:
        (value,) = self._pop(1)
        self.stack[-1].append(_plain(value))

    def _appends(self, _: Any) -> None:
        values = self._pop_mark()
        self.stack[-1].extend(map(_plain, values))

    def _setitem(self, _: Any) -> None:
        self._set(self._pop(2))

    def _setitems(self, _: Any) -> None:
        self._set(self._pop_mark())

    def _set(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, int | str):  # others may take for ever to hash
                raise ValueError(f"a dictionary with a {type(key).__name__} as key")
            target[key] = _plain(value)

    def _global(self, words: str) -> None:
        module, _, name = words.partition(" ")
        self.stack.append(_Name(module, name))

    def _stack_global(self, _: Any) -> None:
        module, name = self._pop(2)
        self.stack.append(_Name(module, name))

    def _binpersid(self, _: Any) -> None:
        if self.persistent is None:
            raise ValueError("an object outside of the file")
        self.stack.append(self.persistent(self._pop(1)[0]))

    def _build(self, _: Any) -> None:
        (state,) = self._pop(1)
        self.stack[-1].build(state)

    def _reduce(self, _: Any) -> None:
        function, arguments = self._pop(2)
        if not isinstance(function, _Name):
            raise ValueError(f"a call of a {type(function).__name__}")
        call = self.functions.get((function.module.replace("numpy._core", "numpy.core"), function.name))
        if call is None:
            raise ValueError(f"a {function.module}.{function.name}")
        self.stack.append(call(*arguments))


_PUSHES = frozenset({
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
})  # fmt: skip
_STEPS = frozenset({
    "PROTO", "FRAME", "MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "TUPLE", "TUPLE1",
    "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL", "BINPERSID", "BUILD",
    "REDUCE",
})  # fmt: skip
_MAKERS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_TUPLE": tuple, "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}  # fmt: skip


def _empty() -> dict[Any, Any]:
    return {}


def _scalar(dtype: _DType, data: Any) -> int | float | bool:
    (value,) = np.frombuffer(data, dtype.dtype)
    result: int | float | bool = value.item()
    return result


def _load_storage(data: bytes) -> NDArray[Any]:
    """The numbers of a tensor as ``torch.save`` wrote them before it used zip files: five pickles, a count and the bytes."""
    stream = io.BytesIO(data)
    for _ in range(3):  # a magic number, the version, sizes of types
        _Machine({}).run(stream)

    def describe(value: Any) -> np.dtype[Any]:
        kind = value[1]
        if value[0] != "storage" or not isinstance(kind, _Name) or kind.name not in _STORAGES:
            raise ValueError(f"a tensor of {getattr(kind, 'name', kind)!r}")
        return np.dtype("<" + _STORAGES[kind.name])

    dtype = _Machine({}, describe).run(stream)
    _Machine({}).run(stream)  # keys
    count = int.from_bytes(stream.read(8), "little", signed=True)
    first = stream.tell()
    if not isinstance(dtype, np.dtype) or count < 0 or first + count * dtype.itemsize != len(data):
        raise ValueError("a tensor whose bytes are not all there")
    return np.frombuffer(data, dtype, count, first) if count else np.empty(0, dtype)


def _rebuild_tensor(storage: NDArray[Any], offset: int, size: Any, stride: Any, *_: Any) -> NDArray[Any]:
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or math.prod(size) > len(storage) or (0 not in size and last >= len(storage)):
        raise ValueError(f"a tensor of shape {tuple(size)} in {len(storage)} numbers")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


_FUNCTIONS: Functions = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy", "dtype"): lambda code, *_: _DType(str(code)),
    ("collections", "OrderedDict"): _empty,
    ("torch.storage", "_load_from_bytes"): _load_storage,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
}
