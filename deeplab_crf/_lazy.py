"""Names of a package that are loaded when they are first used, so that importing it costs nothing."""

from __future__ import annotations

import importlib
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def load_name(package: str, homes: Mapping[str, str], name: str) -> Any:
    """The object ``name`` of ``package``, from the module that ``homes`` says; kept in the package, so that this runs once.

    Raises AttributeError for a name without home, and ImportError that says what to install where torch is missing.
    """
    home = homes.get(name)
    if home is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "torch":
            raise
        raise ImportError(f'{name} needs torch, which is not installed: pip install "deeplab-crf[torch]"') from error
    setattr(sys.modules[package], name, value)
    return value
