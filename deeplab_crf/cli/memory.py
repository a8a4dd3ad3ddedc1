"""The message for out-of-memory errors, with a hint."""

from __future__ import annotations

import re

# torch also raises plain RuntimeErrors: on the CPU, and for memory of cuBLAS or cuDNN.
_WORDS = re.compile(r"out of memory|(?:can't|cannot|unable to) allocate|not enough memory|ALLOC_FAILED|bad_alloc", re.I)
_LONGEST = 200
_HINTS = {
    "segment": "Give the network smaller images (--longer-side), or segment with --device cpu",
    "refine": "Refine a smaller image or fewer labels, or with --device cpu",
    "train": "Take a smaller --crop or --batch, cut batches into more parts (--accumulate), or use --amp bfloat16",
    "evaluate": "Evaluate one image at a time (--workers 1), smaller ones (--longer-side), or with --device cpu",
    "tune": "Take fewer --images, one thread (--threads 1), or for --method gradient a smaller --batch",
    "prune": "Take fewer --crops, or a smaller --crop",
    "bench": "Take a smaller --size",
}
_HINT = "Close other programs, or take a machine with more memory"


def out_of_memory(error: BaseException, command: str | None) -> str | None:
    """Return a message if ``error`` means out of memory, with a hint for the subcommand; else None."""
    text = " ".join(str(error).split())
    if not isinstance(error, MemoryError) and not (isinstance(error, RuntimeError) and _WORDS.search(text)):
        return None
    return f"out of memory ({text[:_LONGEST] or type(error).__name__}). {_HINTS.get(command or '', _HINT)}"
