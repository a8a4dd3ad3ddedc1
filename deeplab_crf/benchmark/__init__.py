"""Benchmarks that come with the package: `deeplab-crf bench` and `deeplab-crf bench-conv`."""
