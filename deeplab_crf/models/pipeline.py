"""From an image to labels: preprocessing, network, upsampling, CRF."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deeplab_crf.core.image_range import BYTES, check_image_range, map_to_bytes
from deeplab_crf.crf.dense_crf import DenseCRF
from deeplab_crf.crf.diagnosis import entropy, map_labels, marginals
from deeplab_crf.crf.inputs import image_units
from deeplab_crf.data.images import BGR_MEAN
from deeplab_crf.models.deeplab import DeepLab
from deeplab_crf.models.images import ImageLike, as_images
from deeplab_crf.models.interp import image_scores, pad_bottom_right, padded_size, resize, size_with_longer_side
from deeplab_crf.nn import fuse
from deeplab_crf.ops.library import CUDA_BUILT

RELEASED = "released"
RELEASED_SIZE = 513  # what the papers' test images are padded to


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What the pipeline says of one image of H x W pixels. All tensors are on the network's device.

    logits: ``(C, H, W)``, of the CRF, or of the network where there is none. network_logits: ``(C, H, W)``, before the CRF.
    """

    logits: Tensor
    network_logits: Tensor

    @property
    def labels(self) -> Tensor:
        """The most probable class of each pixel: int64 ``(H, W)``."""
        return map_labels(self.logits[None])[0]

    @property
    def network_labels(self) -> Tensor:
        """The same before the CRF."""
        return map_labels(self.network_logits[None])[0]

    @property
    def probabilities(self) -> Tensor:
        """``(C, H, W)``; they add up to 1 over the classes."""
        return marginals(self.logits[None])[0]

    @property
    def entropy(self) -> Tensor:
        """How unsure each pixel is, in nats from 0 to log C: ``(H, W)``."""
        return entropy(self.logits[None])[0]


class SegmentationPipeline(nn.Module):
    """A network and its CRF, with the preprocessing that its weights were trained with.

    ``pipeline.predict(images)`` takes images as they come and gives labels. ``pipeline(batch)`` takes a tensor, is differentiable
    through the CRF (CRF as RNN), compiles and exports.

    network: which. crf: "released", the one of the variant (ten iterations, normalised after the filter, as the papers run it);
    the name of a preset, such as "deeplab-v1-largefov-pydensecrf", which re-implementations run, or a preset file, see
    `get_preset`; a `DenseCRF` of yours; or None. min_probability: probabilities below are raised to it before the CRF, as
    re-implementations do (1e-5); 0: the raw scores, as the papers do. longer_side: pixels of the longer side that `predict`
    brings images to before the network sees them, as it was trained; scores are brought back, and the CRF sees the image as it
    is. None: as the network's `Usage` says, else the image's own size. pad_to: `predict` pads images to at least this size, as
    the released nets see all of theirs at 513 x 513; 1 pads no more than the strides need, which is faster for small images.
    None: 513, or 1 with a longer side or without aligned corners (`Usage`). fused: whether `predict` runs a copy of the network
    whose convolutions are fused and faster (`deeplab_crf.nn.fuse`), for the memory of a second set of weights; writes to
    weights through ``.data`` go unseen by it. image_range: (low, high), the values of black and white in images, instead of
    0..255; see `deeplab_crf.dense_crf`.

    The CRF runs where its own numbers are: `run_on` puts the network on any device, and the CRF beside it where it has kernels.
    """

    mean: Tensor

    def __init__(
        self,
        network: DeepLab,
        crf: DenseCRF | str | os.PathLike[str] | None = RELEASED,
        *,
        min_probability: float = 0.0,
        longer_side: int | None = None,
        pad_to: int | None = None,
        fused: bool = True,
        image_range: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(crf, str | os.PathLike):
            own = network.usage.crf or network.variant.crf
            crf = DenseCRF.from_preset(own if crf == RELEASED else crf, network.num_classes)
        if longer_side is not None and longer_side < 1:
            raise ValueError(f"longer_side must be at least 1 pixel; got {longer_side!r}")
        if not 0 <= min_probability < 1:
            raise ValueError(f"min_probability must lie in [0, 1); got {min_probability!r}")
        self.network, self.crf = network, crf
        self.min_probability = min_probability
        self.longer_side = network.usage.longer_side if longer_side is None else longer_side
        as_released = self.longer_side is None and network.usage.align_corners
        self.pad_to = (RELEASED_SIZE if as_released else 1) if pad_to is None else max(pad_to, 1)
        self.fused = fused
        self.image_range = check_image_range(image_range)
        self._kept: tuple[object, nn.Module] | None = None
        self.train(network.training)
        self.register_buffer("mean", torch.tensor(BGR_MEAN).reshape(3, 1, 1), persistent=False)

    def run_on(self, device: torch.device) -> None:
        """Moves the network to ``device``, and the CRF too if its kernels run there: on CUDA where they were built. Else to the
        CPU."""
        self.network.to(device)
        if self.crf is not None:
            has_kernels = device.type == "cuda" and CUDA_BUILT
            self.crf.to(device if has_kernels else torch.device("cpu"))

    @property
    def inference_network(self) -> nn.Module:
        """What `predict` runs: `deeplab_crf.nn.fuse` of the network in evaluation mode, made anew after its weights have changed or
        moved. The network itself in training mode, and for MSc variants, which read their backbone's inner layers."""
        if not self.fused or self.network.training or self.network.msc is not None:
            return self.network
        tensors = (*self.network.parameters(), *self.network.buffers())
        state = (self.network.usage, *((tensor.data_ptr(), tensor._version) for tensor in tensors))
        if self._kept is None or self._kept[0] != state:
            self._kept = None  # freed before its successor is made
            self._kept = (state, fuse(self.network))
        return self._kept[1]

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, C, H, W)`` of RGB images ``(B, 3, H, W)`` in 0..255 or in the pipeline's image_range, any real dtype: of the
        CRF, or of the network without one. Raises ValueError for images on the CPU whose range is not clear."""
        units = image_units(images, self.image_range, (), name="images")
        if units != BYTES:
            images = map_to_bytes(images.to(self.mean.dtype), units)
        logits: Tensor = self.network(self.preprocess(images))["out"]
        return self.refine(logits, images)

    def preprocess(self, images: Tensor) -> Tensor:
        """RGB ``(B, 3, H, W)`` in 0..255 to what the network was trained on: BGR minus the mean."""
        return images.to(self.mean.dtype).flip(1) - self.mean.to(images.device)

    def refine(self, logits: Tensor, images: Tensor) -> Tensor:
        """The CRF's logits for the network's ``(B, C, H, W)`` and RGB images ``(B, 3, H, W)``; without a CRF the network's own."""
        return logits if self.crf is None else refine_logits(self.crf, logits, images, self.min_probability)

    @torch.no_grad()
    def predict(self, images: ImageLike | Sequence[ImageLike]) -> list[Segmentation]:
        """Segment one image or several, of any sizes: PIL images, NumPy arrays or tensors in RGB, see `images.as_images`.

        Images are resized (see longer_side) and padded with the mean at the bottom and at the right; those of the same padded
        size go through the network together, and the CRF sees each without its padding. An image's result does not depend on what
        else is in the list. In evaluation mode whatever the pipeline's; which is as before afterwards.
        """
        tensors = as_images(images, self.image_range)
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, image in enumerate(tensors):
            groups[self.padded_size(image)].append(i)
        results: dict[int, Segmentation] = {}
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            for size, members in groups.items():
                segmented = self._predict_batch([tensors[i] for i in members], size)
                results.update(zip(members, segmented, strict=True))
        finally:
            for module, mode in modes:
                module.training = mode
        return [results[i] for i in range(len(tensors))]

    def seen_size(self, image: Tensor) -> tuple[int, int]:
        """Rows and columns to which an image ``(3, H, W)`` is resized for the network, without padding."""
        return size_with_longer_side((image.shape[-2], image.shape[-1]), self.longer_side)

    def padded_size(self, image: Tensor) -> tuple[int, int]:
        """Rows and columns that the network sees of an image ``(3, H, W)``, padding included."""
        rows, columns = (
            padded_size(max(length, self.pad_to), self.network.size_multiple) for length in self.seen_size(image)
        )
        return rows, columns

    @torch.no_grad()
    def padded_logits(self, images: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """The network's part of `predict`, in evaluation mode: logits ``(B, C, *size)``, on its device, for images ``(3, H, W)``
        resized and then padded to ``size``. Those of the padding are still there: score i of the network stands at pixel 8 i."""
        device = next(self.network.parameters()).device
        seen = []
        for image in images:
            resized = resize(image.to(device, self.mean.dtype)[None], self.seen_size(image))
            seen.append(pad_bottom_right(self.preprocess(resized), size))
        logits: Tensor = self.inference_network(torch.cat(seen))["out"]
        return logits

    def _predict_batch(self, images: list[Tensor], size: tuple[int, int]) -> list[Segmentation]:
        """Images that are padded to the same ``size``."""
        results = []
        for image, padded in zip(images, torch.split(self.padded_logits(images, size), 1), strict=True):
            image_size = (image.shape[-2], image.shape[-1])
            logits = image_scores(padded, size, self.seen_size(image), image_size).contiguous()
            results.append(Segmentation(self.refine(logits, image.to(logits.device)[None])[0], logits[0]))
        return results


def refine_logits(crf: DenseCRF, logits: Tensor, images: Tensor, min_probability: float = 0.0) -> Tensor:
    """The CRF's logits for a network's ``(B, C, H, W)`` and RGB images ``(B, 3, H, W)``, computed where the CRF's numbers are and
    brought to the device of ``logits``. min_probability: see `SegmentationPipeline`."""
    unary = logits
    if min_probability > 0:
        unary = torch.softmax(logits, dim=1).clamp(min=min_probability).log()
    device = crf.weights.device
    refined: Tensor = crf(unary.to(device), images.to(device), image_range=BYTES)  # dark images too
    return refined.to(logits.device)
