"""The table of bad inputs of dense_crf, for every device: each is refused by name, with what was expected and what came.

A case is a function that gets dense_crf, with good arguments but for those that it gives, and what the error must say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import samples
from numpy.typing import NDArray

from deeplab_crf import Bilateral, Gaussian, PairwiseKernel

POINTS, LABELS = 60, 4
FEATURES = samples.features(POINTS, 3).T
IMAGE = samples.photo(6, 10)
SCORES = samples.energies(LABELS, POINTS).reshape(LABELS, 6, 10)
PROBABILITIES = np.full((LABELS, 6, 10), 1.0 / LABELS)
HARD = SCORES.argmin(axis=0)

Case = tuple[Callable[[Callable[..., object]], object], str]


def with_good_arguments(dense_crf: Callable[..., object]) -> Callable[..., object]:
    """dense_crf that has an image, and energies where no scores are given."""

    def refine(image: Any = IMAGE, **arguments: Any) -> object:
        if not {"logits", "probabilities", "unary", "labels"} & set(arguments):
            arguments["unary"] = SCORES
        return dense_crf(image, **arguments)

    return refine


def changed(array: NDArray[Any], value: float, position: tuple[int, ...]) -> NDArray[Any]:
    """A copy with one value replaced."""
    result = np.array(array, dtype=np.float64 if array.dtype.kind != "f" else array.dtype)
    result[position] = value
    return result


DENSE_CRF: dict[str, Case] = {
    "no scores": (lambda crf: crf(unary=None), "(exactly )?one of.*logits.*probabilities.*unary.*labels"),
    "two scores": (lambda crf: crf(unary=SCORES, logits=SCORES), "one of.*(unary|logits).*"),
    "sizes disagree": (lambda crf: crf(unary=SCORES[:, :, :-1]), "image.*6 x 9.*6 x 10"),
    "transposed image": (lambda crf: crf(IMAGE.transpose(1, 0, 2)), "(unary|image).*6.*10"),
    "batch against one": (lambda crf: crf(IMAGE[None], unary=SCORES), "(unary|image)"),
    "batches disagree": (lambda crf: crf(IMAGE[None], unary=np.stack([SCORES, SCORES])), "(image|unary).*2"),
    "image of one axis": (lambda crf: crf(IMAGE[:, 0, 0]), "image"),
    "scores of two axes": (lambda crf: crf(unary=SCORES.reshape(LABELS, POINTS)), r"unary.*\(4, 60\)"),
    "NaN image": (lambda crf: crf(changed(IMAGE, np.nan, (2, 3, 1))), "image.*(nan|finite)"),
    "infinite image": (lambda crf: crf(changed(IMAGE, np.inf, (2, 3, 1))), "image.*(inf|finite)"),
    "text image": (lambda crf: crf(np.full((6, 10, 3), "a")), "image"),
    "complex image": (lambda crf: crf(IMAGE.astype(np.complex64)), "image"),
    "huge image values": (lambda crf: crf(changed(IMAGE, 1e35, (2, 3, 1))), "(image|features)"),
    "empty image": (lambda crf: crf(IMAGE[:0], unary=SCORES[:, :0]), "(image|unary).*(empty|at least)"),
    "image without channels": (lambda crf: crf(IMAGE[..., :0]), "image.*(empty|channel|at least)"),
    "no classes": (lambda crf: crf(unary=SCORES[:0]), "unary.*(empty|label|class|at least)"),
    "NaN unary": (lambda crf: crf(unary=changed(SCORES, np.nan, (1, 2, 3))), "unary.*(nan|finite)"),
    "NaN logits": (lambda crf: crf(logits=changed(SCORES, np.nan, (1, 2, 3))), "logits.*(nan|finite)"),
    "infinite logits": (lambda crf: crf(logits=changed(SCORES, np.inf, (1, 2, 3))), "logits.*(inf|finite)"),
    "NaN probabilities": (
        lambda crf: crf(probabilities=changed(PROBABILITIES, np.nan, (1, 2, 3))),
        "probabilities.*(nan|finite)",
    ),
    "negative probabilities": (lambda crf: crf(probabilities=changed(PROBABILITIES, -0.5, (1, 2, 3))), "probabilities"),
    "probabilities above one": (lambda crf: crf(probabilities=changed(PROBABILITIES, 7.0, (1, 2, 3))), "probabilities"),
    "label too large": (lambda crf: crf(labels=changed(HARD, 4, (2, 3)).astype(int), num_labels=4), "labels.*4"),
    "label negative": (lambda crf: crf(labels=changed(HARD, -3, (2, 3)).astype(int)), "labels.*-3"),
    "labels not integers": (lambda crf: crf(labels=HARD.astype(float)), "labels.*(int|float)"),
    "labels all ignored": (lambda crf: crf(labels=np.full((6, 10), 255)), "num_labels|labels"),
    "labels of another size": (lambda crf: crf(labels=HARD[:-1]), "image.*5 x 10.*6 x 10"),
    "labels NaN": (lambda crf: crf(labels=changed(HARD, np.nan, (2, 3))), "labels.*float64"),
    "labels all negative": (lambda crf: crf(labels=np.full((6, 10), -3)), r"\blabels.*-3"),
    "label of 65535": (
        lambda crf: crf(labels=changed(HARD, 65535, (2, 3)).astype(np.uint16)),
        "num_labels must be given.*65535.*ignore_label=65535.*--map-labels 65535=255",
    ),
    "label of 65535 beyond num_labels": (
        lambda crf: crf(labels=changed(HARD, 65535, (2, 3)).astype(int), num_labels=4),
        "labels must be in.*65535.*ignore_label=65535",
    ),
    "label of 2e9": (
        lambda crf: crf(labels=changed(HARD, 2e9, (2, 3)).astype(np.int64)),
        "num_labels must be given.*2000000000",
    ),
    "a mask of 0 and 255": (
        lambda crf: crf(labels=np.where(HARD > 1, 255, 0).astype(np.uint8)),
        r"labels must hold 2 labels or more.*got 0 alone beside ignore_label = 255\. If 255 is a class of a mask.*labels == 255",
    ),
    "labels all 0": (lambda crf: crf(labels=0 * HARD), "labels must hold 2 labels or more, or num_labels.*got 0 alone"),
    "colours as labels": (lambda crf: crf(labels=IMAGE), r"labels must have shape \(H, W\); got \(6, 10, 3\).*colours"),
    "colours with alpha as labels": (
        lambda crf: crf(labels=np.dstack([IMAGE, IMAGE[..., :1]])),
        r"labels must have shape \(H, W\); got \(6, 10, 4\).*colours",
    ),
    "colours as labels without an image": (
        lambda crf: crf(None, labels=IMAGE, kernels=(Gaussian(),)),
        r"labels must have shape \(H, W\); got \(6, 10, 3\).*colours",
    ),
    "labels with a channel": (
        lambda crf: crf(labels=HARD[..., None]),
        r"labels must have.*\(6, 10, 1\).*labels\[..., 0\]",
    ),
    "probabilities of one label": (
        lambda crf: crf(probabilities=PROBABILITIES[:1]),
        r"probabilities must have 2 labels or more; got 1\. .*np\.stack\(\[1 - p, p\]\)",
    ),
    "logits of one label": (lambda crf: crf(logits=SCORES[:1]), r"logits must have 2 labels.*got 1.*np\.zeros_like"),
    "energies of one label": (
        lambda crf: crf(unary=SCORES[:1]),
        r"unary must have 2 labels or more; got 1.*background",
    ),
    "num_labels of one": (lambda crf: crf(labels=0 * HARD, num_labels=1), "num_labels must be 2 or more; got 1"),
    "a volume": (
        lambda crf: crf(np.zeros((5, 6, 10)), unary=np.zeros((LABELS, 5, 6, 10))),
        r"image must hold a batch of 4.*got shape \(5, 6, 10\)\. For volumes.*spatial_dims=3",
    ),
    "a volume of a batch": (
        lambda crf: crf(unary=np.zeros((1, LABELS, 5, 6, 10))),
        "unary must.*volumes.*spatial_dims=3",
    ),
    "channels first": (
        lambda crf: crf(np.moveaxis(IMAGE, -1, 0), unary=SCORES),
        r"image must have the scores' size 6 x 10 .*got 3 x 6\. Move its channels last, as in np\.moveaxis\(image, 0, -1\)",
    ),
    "labels last": (
        lambda crf: crf(unary=np.moveaxis(SCORES, 0, -1)),
        r"image must have the scores' size 10 x 4 .*got 6 x 10\. If .* np\.moveaxis\(scores, -1, 0\)",
    ),
    "an image on its side": (lambda crf: crf(IMAGE.swapaxes(0, 1), unary=SCORES), r"got 10 x 6$"),
    "confidence of chance": (
        lambda crf: crf(labels=HARD, confidence=0.25),
        r"confidence must be between 1 / 4 \(the number of labels\) and 1, both excluded; got 0\.25",
    ),
    "confidence below chance": (
        lambda crf: crf(labels=HARD, num_labels=2 + HARD.max(), confidence=0.1),
        r"confidence must be between 1 / 5.*got 0\.1",
    ),
    "confidence zero": (lambda crf: crf(labels=HARD, confidence=0.0), "confidence.*0"),
    "confidence above one": (lambda crf: crf(labels=HARD, confidence=1.5), "confidence.*1.5"),
    "num_labels zero": (lambda crf: crf(labels=HARD, num_labels=0), "num_labels.*0"),
    "num_labels fractional": (lambda crf: crf(labels=HARD, num_labels=4.5), "num_labels.*4.5"),
    "num_labels disagrees": (lambda crf: crf(unary=SCORES, num_labels=7), "num_labels.*7"),
    "unknown preset": (lambda crf: crf(preset="deeplab-v9"), "preset.*deeplab-v1-largefov.*'deeplab-v9'"),
    "srgb of another length": (lambda crf: crf(kernels=(Bilateral(srgb=(1, 2)),)), "srgb.*3.*2"),
    "compat of another length": (lambda crf: crf(kernels=(Gaussian(compat=np.ones(3)),)), "compat.*4.*3"),
    "features of another size": (lambda crf: crf(kernels=(PairwiseKernel(FEATURES[:, 1:]),)), "features.*60"),
    "not a kernel": (lambda crf: crf(kernels=(3.0,)), "kernels.*Gaussian"),
    "unknown normalization": (lambda crf: crf(normalization="mean"), "normalization.*'mean'"),
    "negative iterations": (lambda crf: crf(iterations=-2), "iterations.*-2"),
    "damping of one": (lambda crf: crf(damping=1.0), "damping"),
    "no threads": (lambda crf: crf(threads=0), "threads"),
    "integer type": (lambda crf: crf(dtype=np.int32), "dtype.*float32.*float64"),
}
