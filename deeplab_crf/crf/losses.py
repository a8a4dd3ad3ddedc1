"""Losses on the lattice for training with few labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplab_crf.core.image_range import ImageRange, check_image_range, map_to_bytes
from deeplab_crf.core.pairwise import Bilateral
from deeplab_crf.core.scores import PROBABILITY_SLACK
from deeplab_crf.crf.inputs import check_device, check_floats, check_tensor, extremes, image_units, may_read
from deeplab_crf.crf.points import gather_points, grid_positions, kernel_features, tile_walk
from deeplab_crf.ops.lattice.operators import build_lattice
from deeplab_crf.runtime.checks import real_number


class DenseCRFLoss(nn.Module):
    """The regularised loss of Tang et al. (ECCV 2018, equation 5): ``-weight / B sum_b sum_c S_bc^T W_b S_bc``, the Potts energy
    of soft segmentations S up to a constant. W is the Gaussian of positions and colours, not normalised, on the lattice.

    The parameters and their meaning are those of rloss (github.com/meng-tang/rloss): weight: the sum runs over all pixels, so it is
    small. sigma_rgb: standard deviation of colours, in 0..255. sigma_xy: of positions, in pixels of the image.
    scale_factor: the loss is computed on images of this size relative to the input, images and roi by nearest neighbour,
    probabilities bilinearly, and sigma_xy is scaled with them. image_range: as in `DenseCRF`.

    The gradient is that of the loss as computed, ``-weight / B (W + W^T) S``: the lattice's W is not quite symmetric. rloss takes
    ``2 W S``.
    """

    def __init__(
        self,
        weight: float = 2e-9,
        sigma_rgb: float = 15.0,
        sigma_xy: float = 100.0,
        scale_factor: float = 0.5,
        image_range: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.weight = _plain_number(weight, "weight")
        self.sigma_rgb = _plain_number(sigma_rgb, "sigma_rgb")
        self.sigma_xy = _plain_number(sigma_xy, "sigma_xy")
        self.scale_factor = _plain_number(scale_factor, "scale_factor")
        Bilateral(self.sigma_xy, self.sigma_rgb, self.weight)  # refuses widths and weights that are none
        if not 0 < self.scale_factor <= 1:
            raise ValueError(f"scale_factor must be in (0, 1]; got {scale_factor!r}")
        self.image_range = check_image_range(image_range)
        self._values_checked = False

    def extra_repr(self) -> str:
        """For the module's repr, as rloss prints it."""
        return f"weight={self.weight}, sigma_rgb={self.sigma_rgb}, sigma_xy={self.sigma_xy}, scale_factor={self.scale_factor}"

    def forward(self, probabilities: Tensor, image: Tensor, roi: Tensor | None = None) -> Tensor:
        """The loss, a number in float32 (float64 for float64 probabilities), to be added to the others.

        probabilities: ``(B, C, H, W)``, a softmax's. image: ``(B, channels, H, W)``, any dtype, in 0..255 or in image_range. roi:
        ``(B, H, W)``, bool or weights in 0..1, 0 where pixels are to be left out (padding).

        Raises TypeError for what is no tensor of real numbers; ValueError for other shapes and devices, for NaN and inf in the
        image, for probabilities (logits) and roi outside 0..1, and for an image whose range is not clear. The last three are found
        on the CPU, and on other devices in the first call alone.
        """
        units = self._check(probabilities, image, roi)
        dtype = torch.float64 if probabilities.dtype == torch.float64 else torch.float32
        segmentations, colours = self._scaled(probabilities.to(dtype), "bilinear"), self._scaled(image.to(dtype))
        if roi is not None:
            segmentations = segmentations * self._scaled(roi.to(dtype)[:, None])
        size = segmentations.shape[2:]
        order = tile_walk(size, colours.device)
        colours, channels = map_to_bytes(colours, units), colours.shape[1]
        widths = torch.tensor(
            [self.sigma_xy * self.scale_factor] * 2 + [self.sigma_rgb] * channels, dtype=torch.float64
        )
        positions = grid_positions(size, order, dtype, colours.device)
        features = kernel_features(positions, gather_points(colours, order), widths.log().to(colours.device))
        values = gather_points(segmentations, order).transpose(1, 2)
        likeness = torch.sum(values * build_lattice(features).filter(values))
        return likeness * (-self.weight / len(values))

    def _scaled(self, maps: Tensor, mode: str = "nearest") -> Tensor:
        if self.scale_factor == 1:
            return maps
        corners = None if mode == "nearest" else False
        return F.interpolate(maps, scale_factor=self.scale_factor, mode=mode, align_corners=corners)

    def _check(self, probabilities: Tensor, image: Tensor, roi: Tensor | None) -> ImageRange:
        """Raises for what is wrong; returns the image's values of black and white."""
        for name, tensor in (("probabilities", probabilities), ("image", image), ("roi", roi)):
            check_tensor(tensor, name, optional=name == "roi")
        check_floats(probabilities, "probabilities")
        if probabilities.ndim != 4 or probabilities.numel() == 0:
            raise ValueError(
                f"probabilities must have shape (B, C, H, W), none of them 0; got {tuple(probabilities.shape)}"
            )
        batch, _, *size = probabilities.shape
        if min(size) * self.scale_factor < 1:
            raise ValueError(
                f"scale_factor must leave a pixel of maps of {size[0]} x {size[1]} (H x W); got {self.scale_factor}"
            )
        if image.ndim != 4 or image.numel() == 0 or len(image) != batch or list(image.shape[2:]) != size:
            raise ValueError(
                f"image must have shape ({batch}, channels, {size[0]}, {size[1]}); got {tuple(image.shape)}"
            )
        if roi is not None and tuple(roi.shape) != (batch, *size):
            raise ValueError(f"roi must have shape {(batch, *size)}; got {tuple(roi.shape)}")
        for name, tensor in (("image", image), ("roi", roi)):
            if tensor is not None:
                if tensor.is_complex():
                    raise TypeError(f"{name} must hold real numbers; got {tensor.dtype}")
                check_device(tensor, name, probabilities, "probabilities")
        return self._check_values(probabilities, image, roi)

    def _check_values(self, probabilities: Tensor, image: Tensor, roi: Tensor | None) -> ImageRange:
        first = not (self._values_checked or torch.compiler.is_compiling())
        if first and not probabilities.is_cpu:
            self._values_checked = True
        if may_read(probabilities, first):
            low, high = extremes(probabilities)
            if low < -PROBABILITY_SLACK or high > 1 + PROBABILITY_SLACK:
                raise ValueError(
                    f"probabilities must be in 0..1; got {low:.4g}..{high:.4g}. Give torch.softmax(logits, dim=1)"
                )
        if roi is not None and roi.dtype != torch.bool and may_read(roi, first):
            low, high = extremes(roi)
            if not -PROBABILITY_SLACK <= low <= high <= 1 + PROBABILITY_SLACK:
                raise ValueError(
                    f"roi must hold weights in 0..1; got {low:.4g}..{high:.4g}. Give a mask of 0 and 255 as roi > 0"
                )
        return image_units(image, self.image_range, (self.sigma_rgb,), inside=roi, may_wait=first)


def _plain_number(value: float, name: str) -> float:
    """Return ``value``, an int as an int, so that the module's repr shows what was given."""
    number = real_number(value, name)
    return value if isinstance(value, int) else number
