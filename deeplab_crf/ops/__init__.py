"""The torch API of the native kernels: the operators ``torch.ops.deeplab_crf`` and typed functions for them.

Importing this package registers the operators. It needs torch 2.6 or newer.
"""

import deeplab_crf.ops.conv.operators
import deeplab_crf.ops.lattice.features
import deeplab_crf.ops.lattice.operators
import deeplab_crf.ops.mean_field.forward
import deeplab_crf.ops.mean_field.layout  # noqa: F401
