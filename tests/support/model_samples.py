"""Narrow variants for tests: the papers' layers with a few channels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deeplab_crf.models import variants as table
from deeplab_crf.models.deeplab import DeepLab
from deeplab_crf.models.variants import ResNet, Variant, get_variant

CLASSES = 3


def narrow(name: str, blocks: tuple[int, int, int, int] = (1, 2, 2, 1), **changes: Any) -> Variant:
    """The variant ``name`` with 2 (VGG) or 4 (ResNet) channels in its first stage, 5 in its head and in MSc's branches."""
    variant = get_variant(name)
    if isinstance(variant.backbone, ResNet):
        backbone: Any = replace(variant.backbone, channels=4, blocks=blocks)
    else:
        backbone = replace(variant.backbone, channels=2)
    head = replace(variant.head, channels=5) if variant.head.channels else variant.head
    return replace(variant, backbone=backbone, head=head, msc_channels=5 if variant.msc_channels else 0, **changes)


@contextmanager
def narrow_variants() -> Iterator[None]:
    """Every variant has a few channels within the block. Torch's number of threads is restored at its end."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "VARIANTS", {name: narrow(name) for name in table.VARIANTS})
        patch.setattr("deeplab_crf.models.weights.load.VARIANTS", table.VARIANTS)
        yield
    torch.set_num_threads(before)


def small_model(name: str = "v2-compact-aspp", classes: int = CLASSES, multi_scale: bool | None = None) -> DeepLab:
    """A narrow network with weights from a fixed seed, in evaluation mode."""
    import torch

    torch.manual_seed(0)
    return DeepLab(narrow(name), classes, multi_scale).eval()


def preprocessed(height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """(3, H, W), as if BGR minus the mean, but small."""
    return np.random.default_rng(seed).normal(size=(3, height, width)).astype(np.float32)


def numbers(model: DeepLab) -> dict[str, Any]:
    """Copies of all that a file of weights holds, by name."""
    return {
        name: value.clone() for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")
    }
