"""Mean field models that both engines run."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import samples
from cuda_native import CudaKernel, CudaLattices, CudaMeanField
from native_batch import Kernel, Lattices, MeanField
from numpy.typing import NDArray

Array = NDArray[Any]

DTYPES = [np.float32, np.float64]
BATCH, POINTS = 2, 300


def random(*shape: int, dtype: Any, seed: int, scale: float = 1.0) -> Array:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(dtype)


def compatibility(kind: str, labels: int, dtype: Any) -> Array:
    shape = {"potts": (), "diagonal": (labels,), "matrix": (labels, labels)}[kind]
    return np.asarray(np.random.default_rng(7).uniform(0.2, 1, shape) * (1 if kind == "potts" else -1), dtype)


class Model:
    """The same two kernels, of two and of five dimensions, for both engines."""

    def __init__(
        self, emulated: ModuleType, labels: int, dtype: Any, kinds: tuple[str, str] = ("potts", "potts"), **options: Any
    ):
        self.module, self.options = emulated, {"iterations": 4, **options}
        self.watched = {key: self.options.pop(key) for key in ("damping", "tolerance") if key in self.options}
        self.unary = random(BATCH, POINTS, labels, dtype=dtype, seed=3, scale=2.0)
        self.features = [random(BATCH, POINTS, dims, dtype=dtype, seed=dims, scale=0.8) for dims in (2, 5)]
        self.compat = [compatibility(kind, labels, dtype) for kind in kinds]
        self.norms = [np.abs(random(BATCH, POINTS, dtype=dtype, seed=seed)) * 0.05 + 0.02 for seed in (8, 9, 10)]
        self.norms = [(self.norms[0], None), (self.norms[1], self.norms[2])]

    def cuda_engine(self, images: slice = slice(None)) -> CudaMeanField:
        """For some of the images."""
        kernels = []
        for features, compat, norms in zip(self.features, self.compat, self.norms, strict=True):
            chosen = [None if norm is None else norm[images] for norm in norms]
            kernels.append(CudaKernel(CudaLattices(self.module, features[images]), compat, *chosen))
        return CudaMeanField(kernels, **self.options, **self.watched)

    def cpu_engine(self) -> MeanField:
        """Without damping and tolerance, which it takes later."""
        kernels = [
            Kernel(Lattices(features), compat, *norms)
            for features, compat, norms in zip(self.features, self.compat, self.norms, strict=True)
        ]
        return MeanField(kernels, **self.options)

    def cuda(self, start: Array | None = None, images: slice = slice(None)) -> tuple[Array, ...]:
        return self.cuda_engine(images).run(self.module, self.unary[images], start)

    def cpu(self, start: Array | None = None) -> tuple[Array, Array, Any]:
        return self.cpu_engine().run(self.unary, start, **self.watched)

    def check(self, start: Array | None = None, tolerance: float = 1.0) -> tuple[Array, ...]:
        """Output and trace as on the CPU."""
        got, want = self.cuda(start), self.cpu(start)
        bound = tolerance * samples.TOLERANCE[self.unary.dtype]
        assert samples.scaled_error(got[0], want[0]) <= bound
        if not self.watched.get("tolerance"):
            assert samples.scaled_error(got[1], want[1]) <= bound
        return got
