"""What the lattice costs in accuracy: a layer's results against those of the exact mode, for a given image and setting."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deeplab_crf.crf.dense_crf import DenseCRF
from deeplab_crf.crf.messages import exact_messages, lattice_messages, walked_unary
from deeplab_crf.runtime.checks import shown


@dataclass(frozen=True)
class SettingError:
    """One setting, lattice against exact, over all images and pixels that are not masked.

    name: the setting. kernels: each in words. message_errors: of each kernel's first message ``K Q_0``,
    ``|lattice - exact| / |exact|`` in the Euclidean norm. mean_error, max_error: of the final probabilities. label_agreement:
    share of the pixels with the same label.
    """

    name: str
    kernels: tuple[str, ...]
    message_errors: tuple[float, ...]
    mean_error: float
    max_error: float
    label_agreement: float


@dataclass(frozen=True)
class ErrorReport:
    """The errors of one or more settings on the same scores and image; ``print`` shows a table."""

    settings: tuple[SettingError, ...]

    def __str__(self) -> str:
        rows = [("setting", "kernel", "message", "mean |dQ|", "max |dQ|", "labels equal")]
        for setting in self.settings:
            results = (f"{setting.mean_error:.2e}", f"{setting.max_error:.2e}", f"{setting.label_agreement:.3%}")
            for kernel, error in zip(setting.kernels, setting.message_errors, strict=True):
                first = kernel == setting.kernels[0]
                rows.append(
                    (setting.name if first else "", kernel, f"{error:.1%}", *(results if first else ("", "", "")))
                )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = []
        for row in rows:
            text = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
            text += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
            lines.append("  ".join(text).rstrip())
        return "\n".join(lines)


@torch.no_grad()
def error_report(
    crfs: Mapping[str, DenseCRF], logits: Tensor, image: Tensor | None = None, mask: Tensor | None = None
) -> ErrorReport:
    """Compare each layer with its exact twin.

    crfs: layers by the names of their settings, ``{"80/13": DenseCRF(...), ...}``. logits, image, mask: as in `DenseCRF.forward`.
    The exact mode visits all pairs of pixels: with 10,000 of them it takes a second or so a kernel and iteration.
    """
    if not isinstance(crfs, Mapping) or not all(isinstance(crf, DenseCRF) for crf in crfs.values()):
        raise TypeError(f'crfs must be layers by name, such as {{"80/13": DenseCRF()}}; got {shown(crfs)}')
    return ErrorReport(tuple(_setting_error(name, crf, logits, image, mask) for name, crf in crfs.items()))


def _setting_error(name: str, crf: DenseCRF, logits: Tensor, image: Tensor | None, mask: Tensor | None) -> SettingError:
    lattice, exact = copy.deepcopy(crf), copy.deepcopy(crf)
    lattice.method, exact.method = "lattice", "exact"
    problem = lattice.problem(logits, image, mask)
    if mask is not None and not mask.any():
        raise ValueError("mask must be True for at least one pixel, or there is nothing to compare; got none")
    start = torch.softmax(-walked_unary(problem), dim=-1)
    if problem.mask is not None:
        start = start * problem.mask[..., None]
    messages = zip(lattice_messages(problem), exact_messages(problem), strict=True)
    message_errors = [_relative_error(approximate(start), true(start)) for approximate, true in messages]
    found, wanted = lattice(logits, image, mask), exact(logits, image, mask)
    differences = (found.double().exp() - wanted.double().exp()).abs()
    same = found.argmax(dim=1) == wanted.argmax(dim=1)
    if mask is not None:
        differences, same = differences.movedim(1, -1)[mask], same[mask]
    return SettingError(
        name,
        _kernel_names(crf),
        tuple(message_errors),
        differences.mean().item(),
        differences.max().item(),
        same.double().mean().item(),
    )


def _relative_error(found: Tensor, wanted: Tensor) -> float:
    return float(torch.linalg.vector_norm(found - wanted) / torch.linalg.vector_norm(wanted))


def _kernel_names(crf: DenseCRF) -> tuple[str, ...]:
    """Each kernel with its current widths and normalisation."""
    names, log_srgb = [], iter(crf.log_srgb)
    for log_sxy, bilateral, normalization in zip(crf.log_sxy, crf.bilateral, crf.normalizations, strict=True):
        widths = f"sxy {_numbers(log_sxy)}" + (f" srgb {_numbers(next(log_srgb))}" if bilateral else "")
        names.append(f"{'bilateral' if bilateral else 'gaussian'} {widths}, {normalization}")
    return tuple(names)


def _numbers(log_widths: Tensor) -> str:
    """One number where all are the same."""
    texts = [f"{width:.3g}" for width in log_widths.exp().tolist()]
    return texts[0] if len(set(texts)) == 1 else "/".join(texts)
