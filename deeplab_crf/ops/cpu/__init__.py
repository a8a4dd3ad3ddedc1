"""The operators' kernels on the CPU: what ops/*.py call once they have checked the arguments. Mirrored by ops/cuda."""

from deeplab_crf.ops.cpu import lattice, layout, mean_field, mean_field_gradient

__all__ = ["lattice", "layout", "mean_field", "mean_field_gradient"]
