"""Lattices of kernels that look at positions alone are kept from call to call in inference: the same bits, never a wrong one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from deeplab_crf import Bilateral, DenseCRF, Gaussian
from deeplab_crf.crf import dense_crf
from deeplab_crf.crf import lattice_cache as kept_lattices

LABELS = 3


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of the features that lattices were built of, from now on; nothing is kept from before."""
    shapes: list[tuple[int, ...]] = []
    plain = dense_crf.build_lattice

    def watched(features: Any, max_vertices: int | None = None) -> Any:
        shapes.append(tuple(features.shape))
        return plain(features, max_vertices)

    monkeypatch.setattr(dense_crf, "build_lattice", watched)
    kept_lattices._kept.clear()
    yield shapes
    kept_lattices._kept.clear()


def scene(seed: int, size: tuple[int, int] = (20, 30), batch: int = 1) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, LABELS, *size, generator=generator)
    return logits, (torch.rand(batch, 3, *size, generator=generator) * 255)


def crf(**options: Any) -> DenseCRF:
    return DenseCRF(LABELS, (Gaussian(2, 3), Bilateral(9, 30, 4)), 3, **options)


@torch.no_grad()
def test_the_second_image_builds_its_own_kernel_alone_and_has_the_same_bits(built: list[tuple[int, ...]]) -> None:
    layer = crf()
    first = [layer(*scene(seed)) for seed in (0, 1)]
    assert built == [(1, 600, 2), (1, 600, 5), (1, 600, 5)]
    for seed, want in enumerate(first):
        kept_lattices._kept.clear()
        torch.testing.assert_close(layer(*scene(seed)), want, rtol=0, atol=0)


@torch.no_grad()
def test_whatever_changes_the_kernel_builds_anew(built: list[tuple[int, ...]]) -> None:
    logits, image = scene(0)
    layer = crf(trainable=("bandwidths",))

    def widen() -> None:
        layer.log_sxy[0] += 0.5
        layer(logits, image)

    for call in (
        lambda: layer(*scene(0, size=(30, 20))),
        lambda: layer(*scene(0, batch=2)),
        lambda: layer(logits.double(), image),
        lambda: crf(normalization="after")(logits, image),
        lambda: DenseCRF(LABELS, (Gaussian((2, 2.5), 3), Bilateral(9, 30, 4)), 3)(logits, image),
        widen,
    ):
        built.clear()
        kept_lattices._kept.clear()
        layer(logits, image)
        call()
        assert [shape[2] for shape in built] == [2, 5, 2, 5]


def test_nothing_is_kept_where_gradients_may_come(built: list[tuple[int, ...]]) -> None:
    layer, (logits, image) = crf(trainable=("bandwidths",)), scene(0)
    with torch.no_grad():
        layer(logits, image)
    built.clear()
    layer(logits, image).sum().backward()
    assert layer.log_sxy.grad is not None
    assert [shape[2] for shape in built] == [2, 5]


@torch.no_grad()
def test_nothing_is_kept_of_masks_spacings_bounds_and_large_images(
    built: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, image = scene(0)
    crf()(logits, image, torch.ones(1, 20, 30, dtype=torch.bool))
    crf(spacing=(1, 2))(logits, image)
    crf()(logits, image, spacing=(1.0, 2.0))
    crf(max_vertices=5000)(logits, image)
    monkeypatch.setattr(kept_lattices, "_LARGEST_KEPT", 599)
    crf()(logits, image)
    assert not kept_lattices._kept


@torch.no_grad()
def test_few_are_kept_the_last_ones(built: list[tuple[int, ...]]) -> None:
    layer = crf()
    for size in ((8, 9), (9, 8), (8, 9), (7, 7), (8, 9), (9, 8)):
        layer(*scene(0, size=size))
    assert len(kept_lattices._kept) == 2
    assert [shape[1] for shape in built if shape[2] == 2] == [72, 72, 49, 72]
