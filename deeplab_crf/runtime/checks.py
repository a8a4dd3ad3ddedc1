"""Checks of single numbers, shared by every API. Each error names the argument, what was expected and what came."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
# What an int of the native modules holds.
LARGEST_INT = 2**31 - 1

# Threads that one call may ask for. The system starts fewer than a million, and none of those beyond the cores is of use.
MAX_THREADS = 1024

_LONGEST_SHOWN = 80


def whole_number(value: object, name: str, least: int = 0, most: int = LARGEST_INT) -> int:
    """Return ``value`` as an int if it is a whole number in ``[least, most]``.

    Args:
        value: An int, a NumPy integer, or anything else with ``__index__``, except a bool.
        name: The argument's name, for the error.
        least: The smallest number allowed.
        most: The largest number allowed.

    Raises:
        ValueError: If it is anything else.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        bounded = most < LARGEST_INT or (number is not None and number > most)
        allowed = f"in [{least}, {most}]" if bounded else f">= {least}"
        raise ValueError(f"{name} must be a whole number {allowed}; got {shown(value)}")
    return number


def real_number(value: object, name: str) -> float:
    """Return ``value`` as a float.

    Args:
        value: A float, an int, a NumPy scalar, or anything else with ``__float__``, except bools, texts and arrays. It may be
            infinite or NaN.
        name: The argument's name, for the error.

    Raises:
        TypeError: If it is no real number.
        ValueError: If it is too large for a float.
    """
    single = getattr(value, "shape", ()) == () and not getattr(value, "mask", False)  # numpy.ma.masked counts as NaN
    kind = getattr(getattr(value, "dtype", None), "kind", "f")
    if single and kind in "iuf" and not isinstance(value, bool | str | bytes | bytearray):
        try:
            return float(value)  # type: ignore[arg-type]
        except OverflowError:
            raise ValueError(f"{name} must fit a float, below 1.8e308; got {shown(value)}") from None
        except (TypeError, ValueError):
            pass
    raise TypeError(f"{name} must be a real number; got {shown(value)}")


def choice(value: str, choices: Sequence[str], name: str) -> str:
    """Return ``value`` if it is one of ``choices``, else raise ValueError."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {shown(value)}")
    return value


def items_of(values: Iterable[Item], name: str, what: str) -> tuple[Item, ...]:
    """Return the items of a sequence.

    Args:
        values: The sequence; a text is none.
        name: The argument's name, for the error.
        what: The items in words, for the error.

    Raises:
        TypeError: If ``values`` is no sequence.
    """
    try:
        if not isinstance(values, str | bytes):
            return tuple(values)
    except TypeError:
        pass
    raise TypeError(f"{name} must be a sequence of {what}; got {shown(values)}")


def shown(value: object) -> str:
    """Return the repr of ``value`` for an error, cut short. Python refuses to print integers of thousands of digits."""
    try:
        text = repr(value)
    except ValueError:
        return f"an integer of about {int(int(value).bit_length() * 0.30103)} digits"  # type: ignore[call-overload]
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
