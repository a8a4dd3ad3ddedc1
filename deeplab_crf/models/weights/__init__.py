"""Weights files of others and of our own: readers (caffe.py, files.py), names of layers (names.py), loading and saving
(load.py)."""
