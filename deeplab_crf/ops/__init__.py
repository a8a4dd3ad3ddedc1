"""The torch door to the native kernels: operators ``torch.ops.deeplab_crf`` (ops/library.py) and their typed faces.

Importing this package registers the operators. Needs torch 2.6 or newer.
"""

from deeplab_crf.ops import conv, features, lattice, layout, mean_field

__all__ = ["conv", "features", "lattice", "layout", "mean_field"]
