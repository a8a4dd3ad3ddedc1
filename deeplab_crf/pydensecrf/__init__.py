"""Drop-in replacement for pydensecrf: the same modules, names, signs and axis orders on top of this package's engine.

Change the import (``import deeplab_crf.pydensecrf.densecrf as dcrf``), call `install_as_pydensecrf` once, before a script first
imports pydensecrf, or run it by ``python -m deeplab_crf.pydensecrf script.py``. CRFs run on the CPU unless `set_device` says
otherwise.
"""

from __future__ import annotations

import sys

from deeplab_crf.pydensecrf import densecrf, eigen, utils
from deeplab_crf.pydensecrf._device import set_device
from deeplab_crf.pydensecrf._install import install_modules

__all__ = ["densecrf", "eigen", "install_as_pydensecrf", "set_device", "utils"]


def install_as_pydensecrf() -> None:
    """Make ``import pydensecrf`` and its ``densecrf``, ``utils`` and ``eigen`` reach this package.

    This holds in this process and in the Python processes that it starts from then on, however they are started: workers
    of joblib (loky), of multiprocessing and of other libraries. A folder of this package is put into ``sys.path`` and in
    front of the environment variable ``PYTHONPATH`` for them. Calling it again changes nothing. Nothing on disk is touched, and
    an installed pydensecrf is only hidden.

    Raises:
        RuntimeError: The real pydensecrf was imported before: the modules that hold it would keep using it.
    """
    install_modules(
        {
            "pydensecrf": sys.modules[__name__],
            "pydensecrf.densecrf": densecrf,
            "pydensecrf.eigen": eigen,
            "pydensecrf.utils": utils,
        }
    )
