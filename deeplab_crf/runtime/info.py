"""What was built and what is usable on this machine."""

from __future__ import annotations

from typing import Any

from deeplab_crf import _native
from deeplab_crf.runtime.threads import get_num_threads

# The number in pyproject.toml, which the build compiles in.
__version__: str = _native.build_info()["version"]


def native_info() -> dict[str, Any]:
    """The build and the machine as plain data: version, compiler, instruction sets, threads, CUDA and, where it is not
    usable, why and what to do."""
    build = _native.build_info()
    return {
        "version": __version__,
        "compiler": build["compiler"],
        "cpu": {
            "detected": build["isa_detected"],
            "active": build["isa_active"],
            "compiled": list(build["isa_compiled"]),
        },
        "threads": get_num_threads(),
        "cuda": cuda_info(),
    }


def cuda_info() -> dict[str, Any]:
    """What there is of the CUDA engine; ``architectures`` and ``compiler`` are None where it was not built."""
    built: bool = _native.build_info()["cuda_built"]
    facts: dict[str, Any] = {"built": built, "usable": False, "devices": 0, "architectures": None, "compiler": None}
    if not built:
        why = "no CUDA compiler was found when this was installed"
        cure = "Use the CPU, or install the CUDA toolkit (nvcc, 12.0 or later) and then deeplab-crf from source again"
        return {**facts, "why": why, "cure": cure}
    from deeplab_crf import _cuda  # beside what needs it: the module exists only in such builds

    count, why = _cuda.devices()
    facts |= {"usable": count > 0, "devices": count, **_cuda.build_info()}
    if count > 0:
        return {**facts, "why": "", "cure": ""}
    cure = "Use the CPU, or look with nvidia-smi whether the driver is installed and new enough for this CUDA"
    return {**facts, "why": why or "the driver offers no device", "cure": cure}
