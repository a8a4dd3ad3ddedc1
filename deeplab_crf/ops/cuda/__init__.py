"""The operators on CUDA tensors."""
