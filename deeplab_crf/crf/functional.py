"""`dense_crf`: one call from an image, and what is said of its pixels, to probabilities, on the CPU or on a CUDA device."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from deeplab_crf.core.arrays import check_dtype
from deeplab_crf.core.image_crf import Refinement, refine_arrays
from deeplab_crf.core.image_range import check_image_range
from deeplab_crf.core.pairwise import Kernel, PairwiseKernel
from deeplab_crf.core.presets import choose_model
from deeplab_crf.core.scores import LabelOptions
from deeplab_crf.runtime.devices import find_device

if TYPE_CHECKING:
    import torch


def dense_crf(
    image: ArrayLike | None,
    *,
    logits: ArrayLike | None = None,
    probabilities: ArrayLike | None = None,
    unary: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    kernels: Sequence[Kernel] | None = None,
    iterations: int | None = None,
    normalization: str | None = None,
    preset: str | os.PathLike[str] | None = None,
    num_labels: int | None = None,
    confidence: float = 0.7,
    ignore_label: int | None = 255,
    damping: float = 0.0,
    tolerance: float = 0.0,
    threads: int | None = None,
    dtype: DTypeLike = np.float32,
    image_range: Sequence[float] | None = None,
    device: str | torch.device | None = None,
) -> Any:
    """Refine what a network says about an image with a fully connected CRF (Kraehenbuehl & Koltun, NIPS 2011).

    image: ``(H, W)`` or ``(H, W, channels)``, any integer or float dtype; None if no kernel is `Bilateral`.
    Exactly one of
      logits: raw scores ``(L, H, W)``; the energies are ``-logits``. -inf is taken as energies of +inf are.
      probabilities: ``(L, H, W)`` in 0..1; the energies are ``-log(max(p, 1e-5))``.
      unary: energies ``(L, H, W)``, negative log probabilities, lower is better; +inf for labels that a pixel cannot have, where it
        has a label of finite energy.
      labels: a label map ``(H, W)`` of 0..num_labels-1, trusted with probability ``confidence``; ``ignore_label`` marks pixels
        that nobody is sure about (None: there is no such label).
    Any float dtype and strides. A leading batch dimension on scores and image refines each image by itself.

    kernels (default ``Gaussian(), Bilateral()``), iterations (5), normalization ("symmetric"): the model, or those of a
    ``preset``, a name or a file (see `get_preset`); what is given beside a preset wins. damping, tolerance: see
    `MeanField.inference`. threads: None takes `get_num_threads`. dtype: float32, or float64 for everything in double precision.

    image_range: (low, high), the image's values of black and white, which are mapped linearly to 0..255, the units of the colour
    widths; (0, 255) takes the values as they are. None: uint8 and bool tell their range, and so do other images whose values lie
    in 0..255 and are not all next to 0, as those in 0..1 are. Where it is not clear, and no colour width is below 1 or above 255
    and so in the image's own units, there is a ValueError.

    device: "cpu", "cuda" or "cuda:N", where arrays are copied to and the result from. CUDA tensors of torch among the arguments
    (features of a `PairwiseKernel` too) choose their own, arrays beside them are copied there, and the result is a CUDA tensor,
    which does not require gradients: `DenseCRF` is the one to train. On CUDA a batch runs in one go.

    Returns probabilities of the scores' shape (``(L, H, W)`` for labels), a view whose memory runs label by label within a pixel.
    Raises ValueError or TypeError that names the argument for wrong shapes, NaN, inf, and values out of range; for a device that
    cannot be used see `find_device`.
    """
    scores = {"logits": logits, "probabilities": probabilities, "unary": unary, "labels": labels}
    model = choose_model(preset, kernels, iterations, normalization)
    options = LabelOptions(num_labels, confidence, ignore_label)
    what = Refinement(model, options, damping, tolerance, threads, check_dtype(dtype), check_image_range(image_range))
    features = {
        f"features of kernel {m}": kernel.features
        for m, kernel in enumerate(model.kernels)
        if isinstance(kernel, PairwiseKernel)
    }
    home = _home_of_tensors({"image": image, **scores, **features})
    if home is not None and device is not None and str(device) not in (home.type, str(home)):
        raise ValueError(
            f"device must be that of the tensors, {home}, or None; got {str(device)!r}. Move them with .to()"
        )
    where = find_device(home or ("cpu" if device is None else device))
    if where is None:
        return refine_arrays(image, scores, what)
    from deeplab_crf.crf.image_inference import refine_tensors  # here: needs torch

    result = refine_tensors(image, scores, what, where)
    return result if home is not None else result.cpu().numpy()


def _home_of_tensors(arguments: Mapping[str, Any]) -> torch.device | None:
    """The CUDA device of the tensors among the arguments; None if they are none, or lie on the CPU, where they are arrays like
    others."""
    loaded: Any = sys.modules.get("torch")
    if loaded is None:  # imported by nobody: there are no tensors
        return None
    places: dict[str, torch.device] = {
        name: value.device for name, value in arguments.items() if isinstance(value, loaded.Tensor)
    }
    if all(place.type == "cpu" for place in places.values()):
        return None
    if len(set(places.values())) > 1:
        found = ", ".join(f"{name} on {place}" for name, place in places.items())
        raise ValueError(f"tensors must be on one device; got {found}. Move them with .to()")
    name, home = next(iter(places.items()))
    if home.type != "cuda":
        raise ValueError(f"{name} must be on the CPU or a CUDA device; got {home}. Move it with .to()")
    return home
