"""The operators' kernels on CUDA: what ops/*.py call once they have checked the arguments. Mirrored by ops/cpu.

Everything is put on the stream that is current on the tensors' device, with memory of torch's allocator, which knows that stream.
"""

from deeplab_crf.ops.cuda import conv, lattice, layout, mean_field, mean_field_gradient

__all__ = ["conv", "lattice", "layout", "mean_field", "mean_field_gradient"]
