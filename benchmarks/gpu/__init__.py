"""Steps of `benchmarks.gpu_report`, a module each with ``measure(context) -> Section``. See ../README.md."""
