"""The fully connected CRF as a torch module."""

from __future__ import annotations

import os
from collections.abc import Collection, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deeplab_crf.core.image_crf import colour_widths
from deeplab_crf.core.image_range import BYTES, ImageRange, check_image_range, map_to_bytes
from deeplab_crf.core.mean_field import check_steps
from deeplab_crf.core.pairwise import Bilateral, Gaussian, Kernel, check_normalization
from deeplab_crf.core.presets import get_preset
from deeplab_crf.crf import parameters
from deeplab_crf.crf.exact import exact_mean_field
from deeplab_crf.crf.inputs import (
    LayerShape,
    accepted_energies,
    check_image,
    check_mask,
    check_scores,
    check_spacing,
    image_units,
)
from deeplab_crf.crf.lattice_cache import NormedLattice, kept_lattice, lattice_key, may_keep
from deeplab_crf.crf.points import gather_points, grid_positions, kernel_features, replace_masked, walked_grid
from deeplab_crf.ops.lattice.operators import build_lattice, check_header, normalisation
from deeplab_crf.ops.mean_field.forward import GRADIENTS, PairwiseTerm, Updates, mean_field
from deeplab_crf.ops.mean_field.layout import logits_error, pack_unary, unpack_scores
from deeplab_crf.ops.mean_field.terms import check_finite
from deeplab_crf.runtime.checks import choice, items_of, real_number, whole_number

TRAINABLE = ("weights", "compatibility", "bandwidths")
METHODS = ("lattice", "exact")
_DEFAULTS = get_preset("pydensecrf")


class CRFProblem(NamedTuple):
    """One call of a layer in the engine's terms: B images of N points and L labels.

    unary: energies ``(B, N, L)``, pixels row by row. Per kernel: features ``(B, N, d)`` divided by their standard deviations,
    normalization, and compatibility (see `PairwiseTerm`). order: int32 ``(N,)``, the row of ``unary`` that each point of features
    and mask stands for; None: the same. mask: bool ``(B, N)`` or None, False for points that take no part. max_vertices: of each
    kernel, see `build_lattice`. keys: of each kernel, what its lattice is kept under, see `kept_lattice`.
    """

    unary: Tensor
    features: tuple[Tensor, ...]
    normalizations: tuple[str, ...]
    compatibilities: tuple[Tensor, ...]
    order: Tensor | None
    mask: Tensor | None
    max_vertices: int | None
    keys: tuple[Hashable | None, ...]

    def terms(self) -> list[PairwiseTerm]:
        """The kernels on lattices, which are built here unless they were kept, with their norms."""
        return [
            PairwiseTerm(*kept_lattice(key, partial(self._normed_lattice, m)), compatibility)
            for m, (key, compatibility) in enumerate(zip(self.keys, self.compatibilities, strict=True))
        ]

    def _normed_lattice(self, m: int) -> NormedLattice:
        mask = None if self.mask is None else self.mask.to(self.unary.dtype)
        lattice = build_lattice(self.features[m], self.max_vertices)
        return NormedLattice(lattice, *normalisation(lattice, self.normalizations[m], mask))


class DenseCRF(nn.Module):
    """A fully connected CRF after a network: refines its logits with the image, end to end differentiable (Kraehenbuehl & Koltun,
    NIPS 2011 and ICML 2013; Zheng et al., ICCV 2015).

    T mean field iterations of ``Q <- softmax(logits + sum_m w_m A_m K_m Q)`` with kernels K_m on permutohedral lattices, built once
    a call and used by all iterations and the backward pass. Images of a batch are independent; each has the bits of its run alone.

    num_classes: L, checked against the logits; needed unless ``compatibility="potts"``. kernels: `Gaussian` and `Bilateral`, whose
    numbers are the initial values below. normalization: "symmetric", "after", "before" or "none", for kernels that do not name
    their own. compatibility: which A_m: "potts" (the identity), "diagonal" or "matrix", initially ones and the identity, or
    ``-compat`` of the kernel. trainable: any of "weights", "compatibility", "bandwidths"; those are parameters, the others buffers:

      weights         ``(M,)``  w_m
      compatibility   ``(M, L)``, ``(M, L, L)`` or None  A_m
      log_sxy         ``(M, axes)``  log standard deviations along x (columns), y (rows)(, z), in pixels or units of ``spacing``
      log_srgb        ``(bilateral kernels, channels)``  log standard deviations of the image's channels, in 0..255

    method: "lattice", or "exact": all pairs of points by brute force, for small images and as ground truth. spatial_dims: 2 for
    images, 3 for volumes, any for points. channels: of the image. spacing: size of a pixel or voxel along x, y(, z), instead of 1.
    image_range: (low, high), the image's values of black and white, which are mapped linearly to 0..255; (0, 255) takes the values
    as they are. None: the dtype and the values tell, see `deeplab_crf.dense_crf`, and where they do not, there is a ValueError.
    Values are read on the CPU; on CUDA in the first call alone, and never with max_vertices or in a compiled layer, which take the
    values as they are.
    damping in [0, 1), tolerance, and gradients: "store", "recompute" or "implicit", what training costs in memory and time; see
    `deeplab_crf.ops.mean_field.forward.mean_field`. Of these only "implicit" goes with damping and a tolerance in training.

    On CUDA tensors everything runs on the current stream of their device. max_vertices: None, or a bound of the vertices of each
    kernel's lattices, all images of a call together (`vertices` counts them). With it a call on CUDA never waits for the device and
    can be captured in a CUDA graph; NaN and inf in the input, and too small a bound, then show as NaN in the result instead of an
    error, and `check` tells afterwards.

    Raises ValueError or TypeError that names the argument.
    """

    weights: Tensor
    compatibility: Tensor | None
    log_sxy: Tensor
    log_srgb: Tensor

    def __init__(
        self,
        num_classes: int | None = None,
        kernels: Sequence[Kernel] = _DEFAULTS.kernels,
        iterations: int = _DEFAULTS.iterations,
        *,
        normalization: str = _DEFAULTS.normalization,
        compatibility: str = "potts",
        trainable: Collection[str] = (),
        method: str = "lattice",
        spatial_dims: int = 2,
        channels: int = 3,
        spacing: Sequence[float] | None = None,
        damping: float = 0.0,
        tolerance: float = 0.0,
        gradients: str = "store",
        max_vertices: int | None = None,
        image_range: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_normalization(normalization)
        choice(method, METHODS, "method")
        choice(gradients, GRADIENTS, "gradients")
        for name, value, least in (
            ("num_classes", 1 if num_classes is None else num_classes, 1),
            ("spatial_dims", spatial_dims, 1),
            ("channels", channels, 1),
            ("max_vertices", 1 if max_vertices is None else max_vertices, 1),
        ):
            whole_number(value, name, least)
        check_steps(iterations, damping, tolerance)
        chosen = parameters.check_kernels(kernels)
        self.num_classes = num_classes
        self.iterations = iterations
        self.normalizations = tuple(kernel.normalization or normalization for kernel in chosen)
        self.bilateral = tuple(isinstance(kernel, Bilateral) for kernel in chosen)
        self.method, self.gradients = method, gradients
        self.damping, self.tolerance = float(damping), float(tolerance)
        self.spatial_dims, self.channels = spatial_dims, channels
        self.spacing = None if spacing is None else _check_spacing_values(spacing, spatial_dims)
        self.max_vertices = max_vertices
        self.image_range = check_image_range(image_range)
        self._initial_srgb = tuple(colour_widths(chosen))
        self._range_checked = False
        self._headers: list[Tensor] = []
        self._add_numbers(chosen, compatibility, trainable)

    def _add_numbers(
        self, kernels: tuple[Gaussian | Bilateral, ...], compatibility: str, trainable: Collection[str]
    ) -> None:
        """Registers the numbers of the model: those that train as parameters, the others as buffers."""
        chosen = set([trainable] if isinstance(trainable, str) else items_of(trainable, "trainable", "names"))
        if not chosen <= set(TRAINABLE):
            raise ValueError(
                f"trainable must hold any of {', '.join(TRAINABLE)}; got {sorted(chosen - set(TRAINABLE))}"
            )
        if "compatibility" in chosen and compatibility == "potts":
            raise ValueError(
                'compatibility must be "diagonal" or "matrix" to be trainable; got "potts", which has no numbers'
            )
        for name, value, group in (
            ("weights", parameters.initial_weights(kernels), "weights"),
            (
                "compatibility",
                parameters.initial_compatibility(kernels, compatibility, self.num_classes),
                "compatibility",
            ),
            ("log_sxy", parameters.initial_log_sxy(kernels, self.spatial_dims), "bandwidths"),
            ("log_srgb", parameters.initial_log_srgb(kernels, self.channels), "bandwidths"),
        ):
            if group in chosen and value is not None and value.numel():
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    @classmethod
    def from_preset(cls, name: str | os.PathLike[str], num_classes: int | None = None, **options: Any) -> DenseCRF:
        """The CRF of a published model by name, or of a preset file, see `get_preset`. options: arguments of `DenseCRF`, which win
        over the preset's."""
        preset = get_preset(name)
        settings = {
            "kernels": preset.kernels,
            "iterations": preset.iterations,
            "normalization": preset.normalization,
            **options,
        }
        return cls(num_classes, **settings)

    def forward(
        self,
        logits: Tensor,
        image: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        spacing: Tensor | Sequence[float] | None = None,
        image_range: Sequence[float] | None = None,
    ) -> Tensor:
        """Refined logits, the logarithms of Q: shape and dtype of ``logits``. ``argmax(1)`` gives labels, ``exp()`` marginals.

        logits: ``(B, L, H, W)``, or ``(B, L, D, H, W)`` with ``spatial_dims=3``, or ``(B, L, N)`` for points; any floating dtype
        (float64 is computed in double, others in float32); -inf for labels that a pixel cannot have. image: ``(B, channels, H, W)``
        or ``(B, channels, D, H, W)``, any real dtype, in 0..255 or in the layer's image_range. For points
        ``(B, N, spatial_dims + channels)``: coordinates
        x, y(, z), then channels (coordinates alone if no kernel is `Bilateral`). None if no kernel needs it. mask: bool like one
        channel of the logits, True for real pixels: the others (padding) take no part, and come back as ``log_softmax(logits)``.
        spacing: ``(axes,)`` or ``(B, axes)`` instead of the layer's. image_range: instead of the layer's.

        Raises ValueError for NaN and inf in logits and image (except for logits of -inf where the pixel has a finite one), and
        wherever shapes, dtypes, devices or the image's range do not fit.
        """
        problem = self.problem(logits, image, mask, spacing=spacing, image_range=image_range)
        if self.method == "exact":
            log_q = exact_mean_field(
                problem.unary,
                problem.features,
                problem.normalizations,
                problem.compatibilities,
                self.iterations,
                damping=self.damping,
                tolerance=self.tolerance,
                mask=problem.mask,
            )
        else:
            terms = problem.terms()
            if self.max_vertices is not None and not torch.compiler.is_compiling():
                self._headers = [term.lattice.header() for term in terms]
            log_q = mean_field(
                problem.unary,
                terms,
                self.iterations,
                order=problem.order,
                updates=Updates(self.damping, self.tolerance),
                gradients=self.gradients,
            )
        # In inference a view that costs nothing; in training a copy, because nll_loss cannot differentiate that memory format.
        scores = log_q.transpose(1, 2)
        if log_q.requires_grad:
            scores = scores.contiguous() if self.method == "exact" else unpack_scores(log_q)
        return scores.reshape(logits.shape).to(logits.dtype)

    def check(self) -> None:
        """After a call with ``max_vertices``: raises ValueError if the bound was too small, or the image or the bandwidths were not
        finite. On CUDA this waits for the device; of a replayed CUDA graph it judges the last replay."""
        for header in self._headers:
            check_header(header)

    def vertices(
        self,
        logits: Tensor,
        image: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        spacing: Tensor | Sequence[float] | None = None,
        image_range: Sequence[float] | None = None,
    ) -> list[list[int]]:
        """Vertices of each kernel's lattices, image by image, for the arguments of `forward`. A bound for ``max_vertices`` is the
        largest sum over the images, and some more for other pictures: 10 to 50 %."""
        problem = self.problem(logits, image, mask, spacing=spacing, image_range=image_range)
        problem = problem._replace(max_vertices=None)
        with torch.no_grad():
            return [term.lattice.num_vertices() for term in problem.terms()]

    def problem(
        self,
        logits: Tensor,
        image: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        spacing: Tensor | Sequence[float] | None = None,
        image_range: Sequence[float] | None = None,
    ) -> CRFProblem:
        """What `forward` hands to the engine, for diagnosis and inference of one's own. Arguments and errors as there."""
        self._check(logits, image, mask)
        units = self._image_units(logits, image, mask, image_range)
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        flat = logits.to(dtype).flatten(2)
        shape = logits.shape[2:]
        exact, points = self.method == "exact", logits.ndim == 3
        order = pixels = None
        if points:
            assert image is not None  # _check
            columns = image.to(dtype).transpose(1, 2)
            positions = columns[:, : self.spatial_dims]
            colours: Tensor | None = None
            if any(self.bilateral):
                colours = map_to_bytes(columns[:, self.spatial_dims :], units)
        else:
            if exact:
                positions = grid_positions(shape, None, dtype, logits.device)
            else:
                order, pixels, positions = walked_grid(shape, logits, dtype)
            colours = None
            if image is not None and any(self.bilateral):
                as_bytes = image.dtype == torch.uint8 and units == BYTES
                colours = (image if as_bytes else map_to_bytes(image.to(dtype), units)).flatten(2)
        given = self.spacing if spacing is None else spacing
        if given is not None:
            positions = positions * check_spacing(given, self.spatial_dims, logits).to(dtype)[..., None]
        features = self._features(positions, colours, pixels, logits.shape[0])
        inside = None
        if mask is not None:
            inside = gather_points(mask[:, None], pixels)[:, 0]
            features = [replace_masked(each, inside) for each in features]
        watched = self._may_wait(logits) or (not torch.compiler.is_compiling() and torch.is_anomaly_enabled())
        unary = _exact_energies(flat) if exact else pack_unary(flat, check=watched)
        compatibilities = self._compatibilities(dtype)
        # On the CPU the operators look at what they are given, with the lattice.
        if (exact or logits.is_cuda) and self._may_wait(logits) and not torch.compiler.is_compiling():
            check_finite(compatibilities)
            if exact:
                _check_features(features)
        still = not (exact or points) and given is None and mask is None and self.max_vertices is None
        keys = self._keys(logits, dtype) if still and may_keep(logits) else (None,) * len(features)
        return CRFProblem(
            unary, tuple(features), self.normalizations, compatibilities, order, inside, self.max_vertices, keys
        )

    def _keys(self, logits: Tensor, dtype: torch.dtype) -> tuple[Hashable | None, ...]:
        """Of each kernel's lattice: of those that look at positions alone."""
        kernels = zip(self.bilateral, self.log_sxy.tolist(), self.normalizations, strict=True)
        return tuple(
            None if colours else lattice_key(logits, dtype, *widths, mode) for colours, widths, mode in kernels
        )

    def _features(self, positions: Tensor, colours: Tensor | None, pixels: Tensor | None, batch: int) -> list[Tensor]:
        """Features ``(B, N, d)`` of every kernel."""
        result = []
        log_srgb = iter(self.log_srgb)
        for log_sxy, bilateral in zip(self.log_sxy, self.bilateral, strict=True):
            if bilateral:
                features = kernel_features(positions, colours, torch.cat([log_sxy, next(log_srgb)]), pixels)
            else:
                features = kernel_features(positions, None, log_sxy)
            result.append(features.expand(batch, -1, -1))
        return result

    def _compatibilities(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """C_m of every kernel as `PairwiseTerm` takes it: the Potts weight w_m, or ``-w_m A_m``."""
        weights = self.weights.to(dtype).unbind()
        if self.compatibility is None:
            return weights
        agreements = self.compatibility.to(dtype).unbind()
        return tuple(-weight * agreement for weight, agreement in zip(weights, agreements, strict=True))

    def _may_wait(self, logits: Tensor) -> bool:
        """Whether the values of arguments are looked at: on CUDA that waits for the device."""
        return self.max_vertices is None or not logits.is_cuda

    def _check(self, logits: Tensor, image: Tensor | None, mask: Tensor | None) -> None:
        expected = LayerShape(self.num_classes, self.spatial_dims, self.channels, any(self.bilateral))
        check_scores(logits, expected)
        check_image(image, logits, expected)
        if mask is not None:
            check_mask(mask, logits)
        if self.weights.device != logits.device:
            raise ValueError(
                f"logits must be on the device of the layer, {self.weights.device}; got {logits.device}. "
                "Move the layer with .to(logits.device)"
            )

    def _image_units(
        self, logits: Tensor, image: Tensor | None, mask: Tensor | None, image_range: Sequence[float] | None
    ) -> ImageRange:
        """The image's values of black and white."""
        if image is None or not any(self.bilateral):
            return BYTES
        channels = image if logits.ndim > 3 else image[..., self.spatial_dims :].transpose(1, 2)
        given = self.image_range if image_range is None else image_range
        first = not (image.is_cpu or self._range_checked or torch.compiler.is_compiling()) and self._may_wait(logits)
        if first and image.dtype != torch.uint8:
            self._range_checked = True
        # Widths that are learned do not change what the image's values mean.
        return image_units(channels, given, self._initial_srgb, inside=mask, may_wait=first)

    def extra_repr(self) -> str:
        """The settings, and the kernels with their current numbers."""
        kind = "potts" if self.compatibility is None else {2: "diagonal", 3: "matrix"}[self.compatibility.ndim]
        trainable = [name for name, _ in self.named_parameters()]
        lines = [
            f"num_classes={self.num_classes}, iterations={self.iterations}, compatibility={kind!r}, trainable={trainable}, "
            f"method={self.method!r}, gradients={self.gradients!r}"
        ]
        srgb = iter(self.log_srgb)
        for m, bilateral in enumerate(self.bilateral):
            widths = f"sxy={_rounded(self.log_sxy[m])}" + (f", srgb={_rounded(next(srgb))}" if bilateral else "")
            name = "Bilateral" if bilateral else "Gaussian"
            lines.append(
                f"(kernel {m}): {name}({widths}, weight={self.weights[m].item():g}, normalization={self.normalizations[m]!r})"
            )
        return "\n".join(lines)


def _exact_energies(flat: Tensor) -> Tensor:
    """Compute `pack_unary` of logits ``(B, L, N)`` in plain torch, so that the exact method runs on any device."""
    unary, wrong = accepted_energies(-flat.transpose(1, 2))
    if wrong is not None:
        image, point, label = wrong
        raise logits_error(flat[image, :, point], image, point, label)
    return unary


def _check_features(features: Sequence[Tensor]) -> None:
    """Raise ValueError for NaN and inf, as the lattice's builder does."""
    if not all(bool(torch.isfinite(each).all()) for each in features):
        raise ValueError(
            "features must be finite; got NaN or inf. Check image and spacing for NaN or inf, and the standard deviations that "
            "divide them"
        )


def _rounded(log_widths: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{width:.6g}") for width in log_widths.detach().exp().tolist())


def _check_spacing_values(spacing: Sequence[float], axes: int) -> tuple[float, ...]:
    values = tuple(real_number(value, "spacing") for value in items_of(spacing, "spacing", "numbers"))
    if len(values) != axes or not all(0 < value < float("inf") for value in values):
        raise ValueError(
            f"spacing must hold {axes} positive finite numbers (x, y{', z' if axes == 3 else ''}); got {spacing!r}"
        )
    return values
