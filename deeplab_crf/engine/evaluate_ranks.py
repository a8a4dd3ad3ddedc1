"""Evaluation on many processes, started by torchrun: each takes a share of the images, and rank 0 adds up the counts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist

from deeplab_crf.engine.evaluate import Evaluation, Task, evaluate


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run: its number, how many there are, its number on this machine, how many there are here."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Ranks:
        """What torchrun says in RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; one process without it."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if not all(name in environment for name in names):
            return cls()
        return cls(*(int(environment[name]) for name in names))


@contextmanager
def joined(ranks: Ranks) -> Iterator[None]:
    """The processes know each other within the block (gloo: what they exchange are a few counts)."""
    if ranks.world == 1:
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def evaluate_share(
    task: Task, ranks: Ranks, *, workers: int = 1, threads: int = 1, on_image: Callable[[], None] = lambda: None
) -> Evaluation | None:
    """`evaluate`, each rank on every ``world``-th image: the whole on rank 0, None on the others. Inside `joined`.

    Counts are whole numbers, so the sums are those of one process.
    """
    indices = range(ranks.rank, len(task.dataset), ranks.world)
    mine = evaluate(task, indices, workers=workers, threads=threads, on_image=on_image)
    if ranks.world == 1:
        return mine
    parts: list[Evaluation | None] | None = [None] * ranks.world if ranks.rank == 0 else None
    dist.gather_object(mine, parts)
    if parts is None:
        return None
    whole, *others = (part for part in parts if part is not None)
    for part in others:
        whole.merge(part)
    return whole
