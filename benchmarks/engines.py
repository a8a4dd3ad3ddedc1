"""Whom we compare, each called as its users call it, at its default build."""

from __future__ import annotations

import importlib
import importlib.metadata
import time
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import Case

PEER = "pydensecrf2"
OURS = "deeplab-crf"
SIMPLE = "SimpleCRF"


@dataclass(frozen=True)
class Inputs:
    """What every engine gets. image: (H, W, 3) uint8. unary: (L, N) float32 energies."""

    image: NDArray[np.uint8]
    unary: NDArray[np.float32]


@dataclass(frozen=True)
class Run:
    """One run. Seconds of both phases (None where the API has one call for both); what came out.

    result: probabilities (L, N), or labels (N,) where the API returns no more.
    """

    build: float | None
    inference: float | None
    total: float
    result: NDArray[Any]

    @property
    def probabilities(self) -> NDArray[Any] | None:
        """(L, N), or None."""
        return self.result if self.result.ndim == 2 else None

    @property
    def labels(self) -> NDArray[Any]:
        """(N,), found when asked for: neither the clock nor the scales see it."""
        return self.result.argmax(axis=0) if self.result.ndim == 2 else self.result


class Engine(Protocol):
    """One package with one number of threads."""

    name: str
    threads: int

    def run(self, case: Case, inputs: Inputs) -> Run:
        """Refine once, and time it."""


class PydensecrfScript:
    """The script that everybody has, on the module that it imports as ``dcrf``: pydensecrf's, or ours instead."""

    def __init__(self, name: str, module: ModuleType, threads: int = 1) -> None:
        self.name = name
        self.threads = threads
        self._module = module

    def run(self, case: Case, inputs: Inputs) -> Run:
        """Build: constructor, unary and kernels. Inference: the iterations, result as an array."""
        self._set_threads()
        began = time.perf_counter()
        crf = self._module.DenseCRF2D(case.width, case.height, case.labels)
        crf.setUnaryEnergy(inputs.unary)
        crf.addPairwiseGaussian(sxy=case.gaussian[0], compat=case.gaussian[1])
        sxy, srgb, compat = case.bilateral
        crf.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=inputs.image, compat=compat)
        built = time.perf_counter()
        probabilities = np.asarray(crf.inference(case.iterations))
        done = time.perf_counter()
        return Run(built - began, done - built, done - began, probabilities)

    def _set_threads(self) -> None:
        if self.name == OURS:
            import deeplab_crf

            deeplab_crf.set_num_threads(self.threads)


class SimpleCRF:
    """SimpleCRF's only call: image, probabilities (H, W, C) and six numbers to labels (H, W)."""

    name = SIMPLE
    threads = 1

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def run(self, case: Case, inputs: Inputs) -> Run:
        """Its probabilities are made from our energies outside of the clock."""
        grid = (case.height, case.width, case.labels)
        probabilities = np.ascontiguousarray(np.exp(-inputs.unary).T).reshape(grid)
        sxy, srgb, compat = case.bilateral
        settings = (float(compat), sxy, srgb, float(case.gaussian[1]), case.gaussian[0], float(case.iterations))
        began = time.perf_counter()
        labels = self._module.densecrf(inputs.image, probabilities, settings)
        total = time.perf_counter() - began
        return Run(None, None, total, np.asarray(labels).astype(np.uint8).reshape(-1))


def find_engine(name: str, threads: int = 1) -> Engine | None:
    """The engine called ``name``, or None where its package is not installed."""
    modules = {OURS: "deeplab_crf.pydensecrf.densecrf", PEER: "pydensecrf.densecrf", SIMPLE: "denseCRF"}
    try:
        module = importlib.import_module(modules[name])
    except ImportError:
        if name == OURS:
            raise  # a broken installation of ours is an error, not an absent peer
        return None
    return SimpleCRF(module) if name == SIMPLE else PydensecrfScript(name, module, threads)


def installed_version(name: str) -> str | None:
    """Version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
