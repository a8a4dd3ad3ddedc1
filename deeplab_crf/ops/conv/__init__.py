"""Operators of dilated convolution."""
