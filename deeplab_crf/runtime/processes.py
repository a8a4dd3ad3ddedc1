"""The processes that work together: one, or as many as torchrun started."""

from __future__ import annotations

import atexit
import os
import time
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from deeplab_crf.runtime.devices import torch_device

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """rank: which process this is, from 0. size: how many there are. device: where this one computes. local_size: how many there
    are on this machine."""

    rank: int
    size: int
    device: torch.device
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of every process's ``values``, to all of them."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Every process's ``value``, in the order of ranks, to all of them."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]


def join_world(device: str) -> World:
    """This process's place among those that torchrun started, by its environment variables; alone without them.

    device: "cpu" (they talk by gloo) or "cuda" (by nccl; each takes the device of its number on its machine). A process group that
    is there already is used; one that is made here lasts as long as the process, since torch cannot make a second one in its place.
    Raises ValueError where the device cannot be used.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World(0, 1, torch_device(device))
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda under torchrun, which numbers the devices itself; got {device!r}")
    where = torch_device("cpu" if device == "cpu" else f"cuda:{os.environ['LOCAL_RANK']}")
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if not dist.is_initialized():
        dist.init_process_group("gloo" if where.type == "cpu" else "nccl")
        atexit.register(_leave)
    return World(dist.get_rank(), dist.get_world_size(), where, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _leave() -> None:
    """Destroys the process group that `join_world` made, unless it is gone already.

    Gloo's threads take the GIL once more after the last operation. The destructor of torch 2.6 waits for them while it holds the
    GIL, and a process that ends right after that operation hangs: let them finish first.
    """
    time.sleep(0.2)
    if dist.is_initialized():
        dist.destroy_process_group()
