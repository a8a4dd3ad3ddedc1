"""Drop-in replacement for pydensecrf: the same modules, names, signs and axis orders on top of this package's engine.

Either change the import (``import deeplab_crf.pydensecrf.densecrf as dcrf``), or leave scripts as they are and call
`install_as_pydensecrf` once, before the first of them imports pydensecrf. CRFs run on the CPU unless `set_device` says otherwise.
"""

from __future__ import annotations

import sys

from deeplab_crf.pydensecrf import densecrf, eigen, utils
from deeplab_crf.pydensecrf._device import set_device

__all__ = ["densecrf", "eigen", "install_as_pydensecrf", "set_device", "utils"]


def install_as_pydensecrf() -> None:
    """Make ``import pydensecrf`` and its ``densecrf``, ``utils`` and ``eigen`` reach this package in this process.

    Calling it again changes nothing. Nothing on disk is touched, and an installed pydensecrf is only hidden.

    Raises RuntimeError if the real pydensecrf was imported before: the modules that hold it would keep using it.
    """
    modules = {
        "pydensecrf": sys.modules[__name__],
        "pydensecrf.densecrf": densecrf,
        "pydensecrf.eigen": eigen,
        "pydensecrf.utils": utils,
    }
    for name, module in list(sys.modules.items()):
        foreign = name.partition(".")[0] == "pydensecrf" and module is not modules.get(name)
        if foreign and module is not None:  # None blocks an import; there is nothing behind it to keep
            origin = getattr(module, "__file__", None) or "an unknown place"
            raise RuntimeError(
                f"install_as_pydensecrf: {name} is already imported, from {origin}. Restart the process and call "
                "install_as_pydensecrf() before anything imports pydensecrf, at the top of the main script"
            )
    sys.modules.update(modules)
