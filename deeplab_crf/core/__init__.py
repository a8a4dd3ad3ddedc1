"""The NumPy door to the native kernels: lattice, mean field, dense_crf. Needs no torch."""
