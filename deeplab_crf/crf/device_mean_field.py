"""Mean field over one set of points on a device, NumPy arrays in and out: the drop-in's engine where it is not on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from deeplab_crf.core.arrays import FloatArray
from deeplab_crf.core.mean_field import (
    SMALLEST_BELIEF,
    Energy,
    MeanFieldResult,
    check_compat,
    check_steps,
    engine_rows,
)
from deeplab_crf.ops.lattice.operators import build_lattice, normalisation
from deeplab_crf.ops.mean_field.forward import PairwiseTerm, mean_field

_SINGLE = np.dtype(np.float32)


class DeviceMeanField:
    """`MeanField` in float32 on ``device``: the methods that the drop-in calls, with their arguments and results.
    Every call copies its arrays to the device and the result back; lattices stay on it.

    touch_origin: one point more, at zero features, whose vertices so exist. It takes no part otherwise: its norms are 0.
    """

    def __init__(
        self,
        num_points: int,
        num_labels: int,
        device: torch.device,
        *,
        order: NDArray[np.int32] | None = None,
        touch_origin: bool = False,
    ) -> None:
        self._shape = (num_labels, num_points)
        self._device = device
        walk = np.arange(num_points, dtype=np.int32) if order is None else order
        extra = 1 if touch_origin else 0
        self._order = self._copied(np.append(walk, np.arange(num_points, num_points + extra, dtype=np.int32)))
        self._extra = extra
        self._terms: list[PairwiseTerm] = []

    def add_kernel(self, features: ArrayLike, compat: ArrayLike, *, normalization: str = "symmetric") -> None:
        """See `MeanField.add_kernel`. features: ``(d, N)``, float32."""
        labels, points = self._shape
        given = np.asarray(features, _SINGLE)
        weights = self._copied(check_compat(compat, labels, _SINGLE))
        padded = np.zeros((1, len(given), points + self._extra), _SINGLE)
        padded[0, :, :points] = given
        lattice = build_lattice(self._copied(padded).transpose(1, 2))
        mask = None
        if self._extra:
            mask = torch.ones((1, points + 1), device=self._device)
            mask[:, points] = 0
        self._terms.append(PairwiseTerm(lattice, *normalisation(lattice, normalization, mask), weights))

    def inference(
        self, unary: ArrayLike, iterations: int, *, q: ArrayLike | None = None, check_finite: bool = True
    ) -> MeanFieldResult:
        """See `MeanField.inference`."""
        check_steps(iterations, 0.0, 0.0)
        energies = self._rows(unary, "unary", check_finite=check_finite, energies=True)
        start = None if q is None else self._rows(q, "q")
        result = mean_field(energies, self._terms, int(iterations), order=self._order, start=start, log_output=False)
        rows: FloatArray = result[0, : self._shape[1]].cpu().numpy()
        return MeanFieldResult(rows.T, int(iterations), float("nan"), False)

    def energy(self, unary: ArrayLike, q: ArrayLike) -> Energy:
        """See `MeanField.energy`."""
        energies, beliefs = self._rows(unary, "unary", energies=True), self._rows(q, "q")
        walked = beliefs[:, self._order.long()]
        pairwise = 0.0
        for lattice, norm_in, norm_out, compat in self._terms:
            messages = lattice.filter(walked if norm_in is None else walked * norm_in[..., None])
            messages = messages if norm_out is None else messages * norm_out[..., None]
            if compat.ndim == 2:
                messages = messages @ compat.T
            else:
                messages = messages * (-compat if compat.ndim == 0 else compat)
            pairwise += _dot(walked, messages)
        # The point added for the origin has Q = 0, and adds nothing to any sum.
        return Energy(_dot(beliefs, beliefs.clamp_min(SMALLEST_BELIEF).log()), _dot(energies, beliefs), pairwise)

    def _rows(self, array: ArrayLike, name: str, *, check_finite: bool = True, energies: bool = False) -> Tensor:
        """``(L, N)`` as ``(1, N, L)`` on the device, with zeros for the point added."""
        rows = self._copied(
            engine_rows(array, self._shape, _SINGLE, name, check_finite=check_finite, energies=energies)
        )
        return torch.nn.functional.pad(rows, (0, 0, 0, self._extra))[None]

    def _copied(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.require(array, requirements=["C", "A", "W"])).to(self._device)


def _dot(a: Tensor, b: Tensor) -> float:
    """Sum of products in double precision."""
    return float((a.double() * b.double()).sum())
