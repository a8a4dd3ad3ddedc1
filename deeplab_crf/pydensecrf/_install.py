"""Puts the drop-in in the place of pydensecrf, in this process and in those that it starts."""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from types import ModuleType

STUB_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "stub")
"""A folder for ``sys.path`` that holds a package pydensecrf, which installs the drop-in when it is imported."""


def install_modules(modules: dict[str, ModuleType]) -> None:
    """Make imports of pydensecrf give ``modules``, by their names, here and in processes started from now on.

    Raises:
        RuntimeError: Another module of such a name is already imported. Nothing is changed then.
    """
    for name, module in list(sys.modules.items()):
        foreign = name.partition(".")[0] == "pydensecrf" and module is not modules.get(name)
        is_stub = getattr(module, "stands_for", None) == __package__
        if foreign and not is_stub and module is not None:  # None blocks an import; there is nothing behind it to keep
            origin = getattr(module, "__file__", None) or "an unknown place"
            raise RuntimeError(
                f"install_as_pydensecrf: {name} is already imported, from {origin}. Restart the process and call "
                "install_as_pydensecrf() before anything imports pydensecrf, at the top of the main script"
            )
    sys.modules.update(modules)
    # multiprocessing and loky hand sys.path to their workers, other processes inherit the environment. The first entry stays
    # the script's folder, which scripts read there, unless a pydensecrf lies in it.
    others = [folder for folder in sys.path if folder != STUB_FOLDER]
    place = 1 if PathFinder.find_spec("pydensecrf", others[:1]) is None else 0
    sys.path[:] = [*others[:place], STUB_FOLDER, *others[place:]]
    inherited = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder != STUB_FOLDER]
    os.environ["PYTHONPATH"] = os.pathsep.join([STUB_FOLDER, *filter(None, inherited)])
