"""Names of a package that are loaded when they are first used, so that importing it costs nothing."""

from __future__ import annotations

import importlib
import importlib.util
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


def check_compiled_module(package: str, name: str) -> None:
    """Raise ImportError if the compiled module ``name`` of ``package`` does not exist.

    Sources that come before the installed package on the path, as in the folder of a clone, hold no compiled module.
    """
    if importlib.util.find_spec(f"{package}.{name}") is None:
        folder = sys.modules[package].__path__[0]
        raise ImportError(
            f"{package} was imported from {folder}, which holds the sources and no compiled module {name}. Start Python "
            "in another folder to use the installed package, or install the sources in place: pip install -e ."
        )
