"""The devices by name: which one is meant, and whether it can be used."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from deeplab_crf.runtime.checks import shown
from deeplab_crf.runtime.info import cuda_info

if TYPE_CHECKING:
    import torch


def find_device(device: str | torch.device) -> torch.device | None:
    """The CUDA device that "cuda" (the current one) or "cuda:N" names; None for "cpu", which loads no torch.

    Raises ValueError for other names and for numbers of devices that are not there, ImportError where torch is missing, and
    RuntimeError where CUDA was not built or offers no device; each says what to do.
    """
    name = shown(device) if isinstance(device, int) else str(device)
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f'device must be "cpu", "cuda" or "cuda:N"; got {name!r}')
    if name == "cpu":
        return None
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(
            f"device {name} needs torch, which is not installed. Use the CPU, or install one that is built for CUDA "
            '(pip install "deeplab-crf[torch]")'
        ) from error
    facts = cuda_info()
    if not facts["usable"]:
        state = "CUDA is built, but" if facts["built"] else "CUDA is not built:"
        raise RuntimeError(f"device {name} is not usable: {state} {facts['why']}. {facts['cure']}")
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"device {name} is not usable: torch {torch.__version__} finds no CUDA device. Use the CPU, or install a torch that "
            "is built for CUDA (https://pytorch.org)"
        )
    _, _, number = name.partition(":")
    index = int(number) if number else torch.cuda.current_device()
    if index >= torch.cuda.device_count():
        raise ValueError(f"device must be one of cuda:0 to cuda:{torch.cuda.device_count() - 1}; got {name}")
    return torch.device("cuda", index)


def torch_device(name: str) -> torch.device:
    """The device of torch's that ``name`` names: "cpu", "cuda", "cuda:1", "mps" or another that torch was built for.

    Raises ValueError that says why where tensors cannot be computed with there.
    """
    import torch

    try:
        float(torch.ones(1, device=name).sum())  # a meta tensor can be made, but has no values
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"device {name!r} cannot be used: {reason}. Use cpu, or one that deeplab-crf info shows as usable"
        ) from error
    return torch.device(name)
