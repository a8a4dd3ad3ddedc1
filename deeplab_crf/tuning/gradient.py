"""Tuning of a CRF by gradients through mean field, on saved scores."""

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
class GradientOptions:
    """How to tune by gradient.

    Args:
        epochs: Passes over all images.
        rate: Adam's learning rate. Numbers are learned as logarithms, so a step changes each by
            about this share at most.
        batch: Images in a step.
        seed: Decides the order of the images.
    """

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
    """The result of an epoch.

    Args:
        number: The epochs that are done.
        loss: Mean cross-entropy of a scored pixel, in nats, over the steps of the epoch, each with
            the numbers before it.
        preset: The numbers after it.
    """

    number: int
    loss: float
    preset: Preset


class GradientTuner:
    """Learns weights and bandwidths of a preset's kernels from cross-entropy on scored pixels.

    Each axis and channel has its own bandwidth. ``done`` is the number of epochs that are done.

    Args:
        images: The images, scores and labels.
        start: The preset to start from.
        options: How to learn.

    Raises:
        ValueError: A kernel is no `Gaussian` or `Bilateral`, has a ``compat``, or has no positive
            weight.

    References:
        Krähenbühl & Koltun, ICML 2013.
    """

    def __init__(self, images: TuneImages, start: Preset, options: GradientOptions) -> None:
        for number, kernel in enumerate(start.kernels):
            if not isinstance(kernel, Gaussian | Bilateral) or kernel.compat is not None or not kernel.weight > 0:
                raise ValueError(
                    f"kernels[{number}] of the start must be a Gaussian or Bilateral with a positive weight and no compat; "
                    f"got {kernel!r}"
                )
        self.images, self.start, self.options = images, start, options
        self._crf = DenseCRF(
            images.num_classes,
            start.kernels,
            start.iterations,
            normalization=start.normalization,
            trainable=("weights", "bandwidths"),
        )
        self._log_weights = torch.nn.Parameter(self._crf.weights.detach().log())
        self._parameters = [self._log_weights, *(p for name, p in self._crf.named_parameters() if name != "weights")]
        self._optimizer = torch.optim.Adam(self._parameters, options.rate)
        self.done = 0  # epochs

    def state(self) -> dict[str, Any]:
        """Return the state from which `load` continues with the same bits."""
        return {"done": self.done, "parameters": self.numbers(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state` of another tuner.

        Raises:
            ValueError: It is the state for other kernels.
        """
        self._set(state["parameters"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.done = state["done"]

    def numbers(self) -> list[Tensor]:
        """Return a copy of the learned numbers."""
        return [parameter.detach().clone() for parameter in self._parameters]

    def _set(self, numbers: Sequence[Tensor]) -> None:
        if [tuple(each.shape) for each in numbers] != [tuple(each.shape) for each in self._parameters]:
            raise ValueError("the numbers that were learned are of other kernels than those of the start")
        with torch.no_grad():
            for parameter, value in zip(self._parameters, numbers, strict=True):
                parameter.copy_(value)

    def epochs(self, progress: Callable[[int], None] = lambda _images: None) -> Iterator[Epoch]:
        """Yield the remaining epochs.

        Args:
            progress: Called with the number of images of each step.

        Raises:
            ValueError: The loss or a gradient is not finite; epochs yielded before are valid.
        """
        generator = torch.Generator().manual_seed(self.options.seed)
        for number in range(1, self.options.epochs + 1):
            order = torch.randperm(len(self.images), generator=generator).tolist()
            if number <= self.done:
                continue
            total, pixels = 0.0, 0
            for first in range(0, len(order), self.options.batch):
                batch = order[first : first + self.options.batch]
                loss, count = self._step(batch)
                total, pixels = total + loss, pixels + count
                progress(len(batch))
            self.done = number
            yield Epoch(number, total / max(pixels, 1), self.preset())

    def _step(self, batch: list[int]) -> tuple[float, int]:
        """Take one step; return the loss summed over the scored pixels, and their number."""
        images = [as_tensors(self.images.prepare(number)) for number in batch]
        pixels = sum(int((labels != IGNORE).sum()) for _, _, labels in images)
        if pixels == 0:
            return 0.0, 0
        self._optimizer.zero_grad()
        total = 0.0
        for logits, image, labels in images:  # one by one: their sizes may differ, and a graph holds every iteration
            loss = F.cross_entropy(self.refine(logits, image), labels, ignore_index=IGNORE, reduction="sum")
            torch.autograd.backward(loss / pixels)
            total += float(loss.detach())
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if not torch.tensor([total, *(float(gradient.abs().sum()) for gradient in gradients)]).isfinite().all():
            raise ValueError(f"loss and gradients must stay finite; got loss {total / pixels:g}. Take a smaller --rate")
        self._optimizer.step()
        return total, pixels

    def refine(self, logits: Tensor, image: Tensor) -> Tensor:
        """Apply the layer with the current numbers."""
        current = {"weights": self._log_weights.exp()}
        result: Tensor = torch.func.functional_call(self._crf, current, (logits, image))
        return result

    def preset_of(self, numbers: Sequence[Tensor]) -> Preset:
        """Return the preset of other `numbers` of this tuner."""
        current = self.numbers()
        self._set(numbers)
        preset = self.preset()
        self._set(current)
        return preset

    def preset(self) -> Preset:
        """Return the current numbers as a preset, rounded to six digits."""
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
