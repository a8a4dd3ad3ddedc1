"""What ``import pydensecrf`` finds in processes started after `install_as_pydensecrf`.

The folder above is in front of ``sys.path`` and ``PYTHONPATH`` then. The import replaces this module by `deeplab_crf.pydensecrf`.
"""

from __future__ import annotations

import os

stands_for = "deeplab_crf.pydensecrf"

try:
    from deeplab_crf.pydensecrf import install_as_pydensecrf
except ImportError as error:
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    raise ImportError(
        f"pydensecrf stands for {stands_for}, because {folder} is on the path, but that cannot be imported "
        f"({error}). Install deeplab-crf in this environment, or take the folder out of PYTHONPATH"
    ) from error

install_as_pydensecrf()
