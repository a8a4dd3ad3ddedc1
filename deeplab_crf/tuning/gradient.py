"""A CRF's numbers learned by gradient, through mean field (Kraehenbuehl & Koltun, ICML 2013), on scores given once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplab_crf.core.pairwise import Bilateral, Gaussian
from deeplab_crf.core.presets import Preset
from deeplab_crf.crf.dense_crf import DenseCRF
from deeplab_crf.data.datasets import IGNORE
from deeplab_crf.runtime.checks import whole_number
from deeplab_crf.tuning.images import TuneImages, as_tensors


@dataclass(frozen=True)
class Learning:
    """How to learn. epochs: walks through all images, in an order that ``seed`` decides. rate: Adam's learning rate; the numbers
    are learned as logarithms, so a step changes each by about this share at most. batch: images a step."""

    epochs: int = 5
    rate: float = 0.02
    batch: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("batch", self.batch)):
            whole_number(value, name, 1)
        if not 0 < self.rate < 1:
            raise ValueError(f"rate must be between 0 and 1; got {self.rate!r}")


@dataclass(frozen=True)
class Epoch:
    """What was learned after so many epochs. loss: mean cross-entropy of a scored pixel, in nats, over the steps of the epoch, each
    with the numbers before it. preset: the numbers after it."""

    number: int
    loss: float
    preset: Preset


class Learner:
    """Learns weights and bandwidths of a preset's kernels, each axis and channel for itself, from cross-entropy on scored pixels.

    Raises ValueError for kernels that are no `Gaussian` or `Bilateral`, bring a ``compat``, or have a weight that is not positive.
    """

    def __init__(self, images: TuneImages, start: Preset, learning: Learning) -> None:
        for number, kernel in enumerate(start.kernels):
            if not isinstance(kernel, Gaussian | Bilateral) or kernel.compat is not None or not kernel.weight > 0:
                raise ValueError(
                    f"kernels[{number}] of the start must be a Gaussian or Bilateral with a positive weight and no compat; "
                    f"got {kernel!r}"
                )
        self.images, self.start, self.learning = images, start, learning
        self._crf = DenseCRF(
            images.num_classes,
            start.kernels,
            start.iterations,
            normalization=start.normalization,
            trainable=("weights", "bandwidths"),
        )
        self._log_weights = torch.nn.Parameter(self._crf.weights.detach().log())
        self._parameters = [self._log_weights, *(p for name, p in self._crf.named_parameters() if name != "weights")]
        self._optimizer = torch.optim.Adam(self._parameters, learning.rate)
        self.done = 0
        """Epochs that are done."""

    def state(self) -> dict[str, Any]:
        """What `load` goes on from: with the same arguments the same bits as without it."""
        return {"done": self.done, "parameters": self.numbers(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take the place of the learner whose `state` it is. Raises ValueError for that of other kernels."""
        self._set(state["parameters"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.done = state["done"]

    def numbers(self) -> list[Tensor]:
        """A copy of what is learned, for `preset`."""
        return [parameter.detach().clone() for parameter in self._parameters]

    def _set(self, numbers: Sequence[Tensor]) -> None:
        if [tuple(each.shape) for each in numbers] != [tuple(each.shape) for each in self._parameters]:
            raise ValueError("the numbers that were learned are of other kernels than those of the start")
        with torch.no_grad():
            for parameter, value in zip(self._parameters, numbers, strict=True):
                parameter.copy_(value)

    def epochs(self, progress: Callable[[int], None] = lambda _images: None) -> Iterator[Epoch]:
        """Those that are left, one after the other. progress: called with the number of images that were done. Raises ValueError if
        the loss or a gradient is not finite; what was yielded before is good."""
        generator = torch.Generator().manual_seed(self.learning.seed)
        for number in range(1, self.learning.epochs + 1):
            order = torch.randperm(len(self.images), generator=generator).tolist()
            if number <= self.done:
                continue
            total, pixels = 0.0, 0
            for first in range(0, len(order), self.learning.batch):
                batch = order[first : first + self.learning.batch]
                loss, count = self._step(batch)
                total, pixels = total + loss, pixels + count
                progress(len(batch))
            self.done = number
            yield Epoch(number, total / max(pixels, 1), self.preset())

    def _step(self, batch: list[int]) -> tuple[float, int]:
        """One step of the optimiser; the sum of the loss over the scored pixels, and how many those are."""
        images = [as_tensors(self.images.prepare(number)) for number in batch]
        pixels = sum(int((labels != IGNORE).sum()) for _, _, labels in images)
        if pixels == 0:
            return 0.0, 0
        self._optimizer.zero_grad()
        total = 0.0
        for logits, picture, labels in images:  # one by one: their sizes may differ, and a graph holds every iteration
            loss = F.cross_entropy(self.refine(logits, picture), labels, ignore_index=IGNORE, reduction="sum")
            torch.autograd.backward(loss / pixels)
            total += float(loss.detach())
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if not torch.tensor([total, *(float(gradient.abs().sum()) for gradient in gradients)]).isfinite().all():
            raise ValueError(f"loss and gradients must stay finite; got loss {total / pixels:g}. Take a smaller --rate")
        self._optimizer.step()
        return total, pixels

    def refine(self, logits: Tensor, picture: Tensor) -> Tensor:
        """The layer's result with the current numbers."""
        current = {"weights": self._log_weights.exp()}
        result: Tensor = torch.func.functional_call(self._crf, current, (logits, picture))
        return result

    def preset_of(self, numbers: Sequence[Tensor]) -> Preset:
        """The preset of other `numbers` of this learner."""
        current = self.numbers()
        self._set(numbers)
        preset = self.preset()
        self._set(current)
        return preset

    def preset(self) -> Preset:
        """The current numbers, to six digits."""
        weights, log_srgb = self._log_weights.exp().tolist(), iter(self._crf.log_srgb)
        kernels: list[Gaussian | Bilateral] = []
        for kernel, weight, log_sxy in zip(self.start.kernels, weights, self._crf.log_sxy, strict=True):
            if isinstance(kernel, Bilateral):
                srgb = _widths(next(log_srgb))
                kernels.append(replace(kernel, sxy=_widths(log_sxy), srgb=srgb, weight=_rounded(weight)))
            elif isinstance(kernel, Gaussian):
                kernels.append(replace(kernel, sxy=_widths(log_sxy), weight=_rounded(weight)))
        return replace(self.start, kernels=tuple(kernels))


def _widths(logarithms: Tensor) -> tuple[float, ...]:
    return tuple(_rounded(width) for width in logarithms.detach().exp().tolist())


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
