"""The gradients of a batch's loss, computed in parts by one process or several."""

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
    """The share of the loss of a part of a batch.

    It is a module so that DistributedDataParallel can wrap it.
    """

    def __init__(self, network: DeepLab, precision: torch.dtype | None) -> None:
        super().__init__()
        self.network, self.precision = network, precision

    def forward(self, images: Tensor, labels: Tensor, totals: Tensor, weight: Tensor | None) -> Tensor:
        """Return this part's share of the loss, computed in float32.

        Args:
            images: ``(b, 3, h, w)``.
            labels: ``(b, h, w)``.
            totals: `loss_totals` of the whole batch.
            weight: The weight of each class, ``(C,)``; None: all alike.
        """
        with torch.autocast(images.device.type, self.precision, enabled=self.precision is not None):
            scores = self.network.scores(images)
        whole = Scores(scores.fused.float(), tuple(each.float() for each in scores.scales), scores.size)
        return training_loss(whole, labels, weight=weight, totals=totals)


class BatchLoss:
    """The loss, with its gradients, of a batch that is spread over parts and processes.

    Each mean over pixels is divided by the pixels of the whole batch, so the sum over parts and
    processes is the loss of the batch, however it is cut. Trained batch norm takes its statistics
    from a part of all processes together.

    Args:
        network: The network that is trained.
        amp: A name of `PRECISIONS`.
        world: The processes that train together.
        weight: The weight of each class, ``(C,)``; None: all alike.
    """

    def __init__(self, network: DeepLab, amp: str, world: World, weight: Tensor | None) -> None:
        self.network, self.world, self.weight = network, world, weight
        part = PartOfLoss(network, PRECISIONS[amp])
        self.part: nn.Module = part
        if world.size > 1:
            own = [world.device] if world.device.type == "cuda" else None
            self.part = DistributedDataParallel(part, device_ids=own)

    def backward(self, parts: Sequence[Batch], scaler: torch.amp.GradScaler) -> Tensor | None:
        """Add the batch's gradients to the parameters'.

        Args:
            parts: This process's parts of the batch.
            scaler: Scales the loss in half precision.

        Returns:
            The batch's loss, the same in every process. None if no pixel of the batch is labelled,
            which would be a perfect 0; no gradient changes then.
        """
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
        """Return this process's share of the loss, after its backward pass."""
        loss = torch.zeros((), device=self.world.device)
        for number, (images, labels) in enumerate(moved):
            deferred = isinstance(self.part, DistributedDataParallel) and number < len(moved) - 1
            with self.part.no_sync() if deferred else nullcontext():  # type: ignore[operator]
                share = self.part(images, labels, totals, self.weight)
                # DistributedDataParallel takes the mean over processes.
                scaler.scale(share * self.world.size).backward()
            loss += share.detach()
        return loss

    def _moved(self, images: Tensor, labels: Tensor) -> Batch:
        device = self.world.device
        seen = images.to(device, non_blocking=True, memory_format=torch.channels_last)
        return seen, labels.to(device, non_blocking=True)

    def _totals(self, labels: Tensor) -> Tensor:
        return loss_totals(labels, weight=self.weight)
