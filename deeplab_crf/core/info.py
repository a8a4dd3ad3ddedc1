"""What was built and what is usable on this machine."""

from __future__ import annotations

from typing import Any

from deeplab_crf import _native
from deeplab_crf.core.threads import get_num_threads


def native_info() -> dict[str, Any]:
    """The build and the machine as plain data: version, compiler, instruction sets, threads, CUDA and, where it is not
    usable, why and what to do."""
    build = _native.build_info()
    return {
        "version": build["version"],
        "compiler": build["compiler"],
        "cpu": {
            "detected": build["isa_detected"],
            "active": build["isa_active"],
            "compiled": list(build["isa_compiled"]),
        },
        "threads": get_num_threads(),
        "cuda": {
            "built": build["cuda_built"],
            "usable": False,
            "why": "this version has no CUDA kernels yet",
            "cure": "use the CPU; a later version brings the CUDA engine",
        },
    }
