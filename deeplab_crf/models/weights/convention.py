"""The input that a file's first convolution was trained on, and its conversion to ours: BGR in 0..255 minus the mean.

Names do not tell it: Caffe's networks are kept under torchvision's names, and torchvision's under ``backbone.``. Numbers do where
batch norm follows: the standard deviation that it stores, over the L2 size of the filters, is what a filter of size 1 answers to
images. That is 52 to 230 for input in 0..255 (measured: VGG-16's filters at 3 x 3 and 7 x 7 on images) and 57 times
less for ImageNet's normalisation. VGG-16 has no batch norm, and the size of its first weights says nothing: trained by Caffe on
0..255 their root mean square is 0.18 (measured), no smaller than weights for 0..1. There the scores of a whole classifier tell.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplab_crf.data.images import BGR_MEAN
from deeplab_crf.models.metadata import CONVENTIONS
from deeplab_crf.models.vgg import STAGES

WORDS = {
    "bgr-255": "BGR in 0..255 minus the mean",
    "rgb-255": "RGB in 0..255 minus the mean",
    "rgb-1": "RGB in 0..1, normalised by ImageNet's mean and deviation",
}
# ImageNet's mean and deviation, RGB in 0..1, that torchvision's networks see images with.
TORCHVISION_MEAN, TORCHVISION_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IN_255 = 57.0  # what a deviation of 1 is in 0..255

# Answers of a filter of size 1, in units of the input: up to the first in 0..1, from the second on in 0..255.
_ANSWER = (4.0, 20.0)
# Root mean squares of conv1's weights: up to the first for input in 0..255, 57 times less than the same filters for 0..1, where the
# deviation of the images went into the weights (as in MSRA's ResNets, by detectron2's note, and in what `convert_input` writes);
# from the second on in 0..1, for ResNets alone.
_SIZE = (0.02, 0.05)
_SCORES = (0.2, 15.0)  # deviations of a classifier's scores over its classes

_WEIGHTS = ("backbone.conv1.weight", "backbone.features.0.weight")
_BIAS, _MEAN, _VARIANCE = "backbone.features.0.bias", "backbone.bn1.running_mean", "backbone.bn1.running_var"


def check_convention(convention: str | None) -> None:
    """Raises ValueError where ``convention`` is neither None nor one of `CONVENTIONS`."""
    if convention is not None and convention not in CONVENTIONS:
        raise ValueError(f"input_convention must be one of {', '.join(CONVENTIONS)}; got {convention!r}")


def first_weight(tensors: Mapping[str, Tensor]) -> str | None:
    """Returns the name of the first convolution's weight, of inputs of three channels; None where there is none."""
    for name in _WEIGHTS:
        if name in tensors and tensors[name].ndim == 4 and tensors[name].shape[1] == 3:
            return name
    return None


def measured_convention(tensors: Mapping[str, Tensor], classifier: Mapping[str, Tensor]) -> tuple[str | None, str]:
    """Tells the convention by numbers.

    Args:
        tensors: The backbone by our names.
        classifier: Of VGG-16: weights and biases by torchvision's names, as ``0.weight``.

    Returns:
        The convention, None where the numbers do not tell, and what they say in words.
    """
    name = first_weight(tensors)
    if name is None:
        return None, ""
    weight = tensors[name].double()
    if name == _WEIGHTS[1]:
        return _by_scores(tensors, classifier, float(weight.square().mean().sqrt()))
    variance, mean = tensors.get(_VARIANCE), tensors.get(_MEAN)
    trained = variance is not None and mean is not None and not (bool((variance == 1).all()) and not mean.any())
    if variance is not None and trained:
        answer = float((variance.double().sum() / weight.square().sum()).sqrt())
        words = f"batch norm after conv1 says that a filter of size 1 answers {answer:.3g}"
        if answer <= _ANSWER[0] or answer >= _ANSWER[1]:
            return ("rgb-1" if answer <= _ANSWER[0] else "bgr-255"), words
    size = float(weight.square().mean().sqrt())
    if trained and (size <= _SIZE[0] or size >= _SIZE[1]):
        return ("bgr-255" if size <= _SIZE[0] else "rgb-1"), f"conv1's weights have the size {size:.2g}"
    return None, ""


def _by_scores(tensors: Mapping[str, Tensor], classifier: Mapping[str, Tensor], size: float) -> tuple[str | None, str]:
    if size <= _SIZE[0]:
        return "bgr-255", f"conv1's weights have the size {size:.2g}, too small for input in 0..1"
    if classifier and all(bool(value.isnan().all()) for value in classifier.values()):
        return "rgb-255", "the classifier is NaN, as in torchvision's weights ported from SSD (IMAGENET1K_FEATURES)"
    deviations = _score_deviations(tensors, classifier)
    if deviations is None:
        return None, ""
    low, high = _SCORES
    for deviation, convention in zip(deviations, ("bgr-255", "rgb-1"), strict=True):
        if low <= deviation <= high:
            where = "0..255" if convention == "bgr-255" else "0..1"
            return convention, f"the classifier's scores have the deviation {deviation:.2g} on input in {where}"
    return None, ""


def _score_deviations(tensors: Mapping[str, Tensor], classifier: Mapping[str, Tensor]) -> tuple[float, float] | None:
    """The classifier's scores over its classes: their deviation on an image in 0..255, and on the same normalised."""
    names = [f"{layer}.{part}" for layer in (0, 3, 6) for part in ("weight", "bias")]
    if not all(name in classifier for name in names):
        return None
    image = _natural_noise(112)
    try:
        with torch.inference_mode():
            first, second = (float(_vgg_scores(scale * image, tensors, classifier).std()) for scale in (IN_255, 1.0))
    except (RuntimeError, KeyError):  # layers that do not fit on one another
        return None
    return first, second


def _vgg_scores(x: Tensor, tensors: Mapping[str, Tensor], classifier: Mapping[str, Tensor]) -> Tensor:
    place = 0
    for convolutions, _ in STAGES:
        for _ in range(convolutions):
            name = f"backbone.features.{place}"
            x = F.relu(F.conv2d(x, tensors[f"{name}.weight"].float(), tensors[f"{name}.bias"].float(), padding=1))
            place += 2
        x = F.max_pool2d(x, 2)
        place += 1
    x = F.adaptive_avg_pool2d(x, 7).flatten(1)
    for layer in (0, 3, 6):
        x = F.linear(x, classifier[f"{layer}.weight"].float(), classifier[f"{layer}.bias"].float())
        x = x if layer == 6 else F.relu(x)
    return x


def _natural_noise(size: int) -> Tensor:
    """A gray image ``(1, 3, size, size)`` with images' spectrum, 1 / f, mean 0 and deviation 1, from a fixed seed."""
    noise = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.fft.fftfreq(size), torch.fft.rfftfreq(size)
    frequency = (rows[:, None].square() + columns.square()).sqrt()
    frequency[0, 0] = 1
    amplitude = 1 / frequency
    amplitude[0, 0] = 0  # a complex number over infinity is NaN in torch 2.6
    image = torch.fft.irfft2(torch.fft.rfft2(noise) * amplitude, s=(size, size))
    scaled: Tensor = image / image.std()
    return scaled.expand(1, 3, size, size)


def convert_input(tensors: dict[str, Tensor], convention: str) -> None:
    """Rewrites the first convolution in ``tensors`` (by our names), trained on input of ``convention``, for ours.

    For RGB in 0..1: x = (rgb / 255 - m) / s is (bgr' + M - 255 m) / (255 s) with bgr' = bgr - M. The constant goes into the bias,
    or the mean of the batch norm after it. Exact where the kernel does not reach over the border: there torchvision pads with its
    mean and DeepLab with its own, which differ by about 1 of 255.
    """
    name = first_weight(tensors)
    if name is None or convention == "bgr-255":
        return
    weight = tensors[name].double()
    if convention == "rgb-255":
        tensors[name] = weight.flip(1)
        return
    scale = 255 * torch.tensor(TORCHVISION_STD, dtype=torch.float64)
    shift = (
        torch.tensor(BGR_MEAN, dtype=torch.float64).flip(0) - 255 * torch.tensor(TORCHVISION_MEAN, dtype=torch.float64)
    ) / scale
    constant = torch.einsum("oikl,i->o", weight, shift)
    tensors[name] = (weight / scale[:, None, None]).flip(1)
    if _BIAS in tensors:
        tensors[_BIAS] = tensors[_BIAS].double() + constant
    elif _MEAN in tensors:
        tensors[_MEAN] = tensors[_MEAN].double() - constant
