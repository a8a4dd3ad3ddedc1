"""One iteration: the gradients of a batch's loss, in parts, by one process or by many."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deeplab_crf.models.deeplab import DeepLab, Scores
from deeplab_crf.models.losses import loss_totals, training_loss
from deeplab_crf.runtime.processes import World
from deeplab_crf.training.batch_norm import shared_batch_norm
from deeplab_crf.training.samples import Batch

PRECISIONS = {"off": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class PartOfLoss(nn.Module):
    """What a part of a batch adds to the batch's loss: a module, so that DistributedDataParallel can wrap it."""

    def __init__(self, network: DeepLab, precision: torch.dtype | None) -> None:
        super().__init__()
        self.network, self.precision = network, precision

    def forward(self, images: Tensor, labels: Tensor, totals: Tensor, weight: Tensor | None) -> Tensor:
        """images ``(b, 3, h, w)``, labels ``(b, h, w)``; totals of the whole batch: `loss_totals`. The loss is computed in
        float32."""
        with torch.autocast(images.device.type, self.precision, enabled=self.precision is not None):
            scores = self.network.scores(images)
        whole = Scores(scores.fused.float(), tuple(each.float() for each in scores.scales), scores.size)
        return training_loss(whole, labels, weight=weight, totals=totals)


class BatchLoss:
    """The loss of a batch that is spread over parts and processes, and its gradients.

    Each mean over pixels is divided by the pixels of the whole batch, so that the sum over parts and processes is the loss of the
    batch, however it is cut. Batch norm that is trained takes its statistics from a part of all processes together.
    """

    def __init__(self, network: DeepLab, amp: str, world: World, weight: Tensor | None) -> None:
        self.network, self.world, self.weight = network, world, weight
        part = PartOfLoss(network, PRECISIONS[amp])
        self.part: nn.Module = part
        if world.size > 1:
            own = [world.device] if world.device.type == "cuda" else None
            self.part = DistributedDataParallel(part, device_ids=own)

    def backward(self, parts: Sequence[Batch], scaler: torch.amp.GradScaler) -> Tensor | None:
        """Adds the batch's gradients to the parameters' and returns its loss, in every process; None, and nothing is done, where no
        pixel of the batch is labelled: its loss would be a perfect 0."""
        moved = [self._moved(*part) for part in parts]
        totals = self.world.sum(
            sum((self._totals(labels) for _, labels in moved), torch.zeros((), device=self.world.device))
        )
        if not bool(totals.any()):
            return None
        with shared_batch_norm(self.network) if self.world.size > 1 else nullcontext():
            loss = self._sum_of_parts(moved, totals, scaler)
        return self.world.sum(loss)

    def _sum_of_parts(self, moved: Sequence[Batch], totals: Tensor, scaler: torch.amp.GradScaler) -> Tensor:
        """This process's share of the loss, and its gradients."""
        loss = torch.zeros((), device=self.world.device)
        for number, (images, labels) in enumerate(moved):
            last = number == len(moved) - 1
            waiting = (
                self.part.no_sync() if isinstance(self.part, DistributedDataParallel) and not last else nullcontext()
            )
            with waiting:
                share = self.part(images, labels, totals, self.weight)
                scaler.scale(
                    share * self.world.size
                ).backward()  # DistributedDataParallel takes the mean over processes
            loss += share.detach()
        return loss

    def _moved(self, images: Tensor, labels: Tensor) -> Batch:
        where = self.world.device
        seen = images.to(where, non_blocking=True, memory_format=torch.channels_last)
        return seen, labels.to(where, non_blocking=True)

    def _totals(self, labels: Tensor) -> Tensor:
        return loss_totals(labels, weight=self.weight)
