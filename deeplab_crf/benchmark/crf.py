"""Time the dense CRF on this machine, against pydensecrf where that is installed: same input, results compared first.

Both packages are driven through pydensecrf's API (ours through `deeplab_crf.pydensecrf`), so the comparison is what a
script that replaces one by the other sees.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deeplab_crf.core.pairwise import Bilateral, Gaussian
from deeplab_crf.data.rasters import read_image
from deeplab_crf.data.sample import ASTRONAUT
from deeplab_crf.data.scores import upsample_bilinear
from deeplab_crf.runtime.threads import get_num_threads, set_num_threads

OURS = "deeplab-crf"
PEER = "pydensecrf"
AGREEMENT = 0.999  # share of equal labels below which times are not worth showing


@dataclass(frozen=True)
class Case:
    """One problem: the bundled image at width x height pixels, smooth random scores of ``labels`` classes."""

    width: int = 500
    height: int = 375
    labels: int = 21
    iterations: int = 10
    gaussian: Gaussian = field(default_factory=Gaussian)
    bilateral: Bilateral = field(default_factory=Bilateral)

    def inputs(self, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """The image (H, W, 3) and a unary (labels, H * W), -log of a softmax; the same for the same seed."""
        image = Image.fromarray(read_image(ASTRONAUT)).resize((self.width, self.height))
        coarse = (self.labels, -(-self.height // 8), -(-self.width // 8))
        logits = upsample_bilinear(
            2 * np.random.default_rng(seed).standard_normal(coarse, dtype=np.float32), self.height, self.width
        ).reshape(self.labels, -1)
        logits -= logits.max(axis=0)
        return np.array(image), np.log(np.exp(logits).sum(axis=0)) - logits


@dataclass(frozen=True)
class Timing:
    """Seconds of each repetition, build (lattices of the kernels) and inference apart."""

    name: str
    threads: int
    build: tuple[float, ...]
    inference: tuple[float, ...]

    @property
    def total(self) -> tuple[float, ...]:
        """Seconds of each repetition, build and inference together."""
        return tuple(build + inference for build, inference in zip(self.build, self.inference, strict=True))

    def summary(self) -> dict[str, str | int | float]:
        """Medians in milliseconds."""
        return {
            "name": self.name,
            "threads": self.threads,
            "build_ms": 1e3 * median(self.build),
            "inference_ms": 1e3 * median(self.inference),
            "total_ms": 1e3 * median(self.total),
        }


@dataclass(frozen=True)
class Report:
    """The timings of one case.

    agreement: (share of equal labels, largest difference in probability) between ours and the peer, or None.
    """

    case: Case
    timings: tuple[Timing, ...]
    agreement: tuple[float, float] | None

    def speedup(self, timing: Timing) -> float | None:
        """How many times faster than the peer, median over repetitions; None without a peer or for the peer itself."""
        peer = [other for other in self.timings if other.name == PEER]
        if not peer or timing.name == PEER:
            return None
        return median(theirs / ours for theirs, ours in zip(peer[0].total, timing.total, strict=True))


def find_peer() -> ModuleType | None:
    """pydensecrf's module, or None where it is not installed (or is ours under its name)."""
    try:
        module = importlib.import_module("pydensecrf.densecrf")
    except ImportError:
        return None
    return None if module is importlib.import_module("deeplab_crf.pydensecrf.densecrf") else module


def run_case(case: Case, *, threads: Sequence[int] = (1,), repeats: int = 5, peer: ModuleType | None = None) -> Report:
    """Compare the results, then time everybody in turn, ``repeats`` times.

    threads: counts that ours runs with, each a row of its own. Raises ValueError if the peer's labels differ from ours
    in more than one pixel of a thousand. The package's thread count is as before afterwards.
    """
    ours = importlib.import_module("deeplab_crf.pydensecrf.densecrf")
    rows = [(OURS, ours, count) for count in threads] + ([(PEER, peer, 1)] if peer is not None else [])
    image, unary = case.inputs()
    before = get_num_threads()
    seconds: list[list[tuple[float, float]]] = [[] for _ in rows]
    try:
        results = [_run(module, case, image, unary, count)[0] for _, module, count in rows]
        agreement = None if peer is None else _agreement(results[0], results[-1])
        for _ in range(repeats):
            for row, (_, module, count) in enumerate(rows):
                seconds[row].append(_run(module, case, image, unary, count)[1])
    finally:
        set_num_threads(before)
    timings = tuple(
        Timing(name, count, tuple(build for build, _ in spent), tuple(inference for _, inference in spent))
        for (name, _, count), spent in zip(rows, seconds, strict=True)
    )
    return Report(case, timings, agreement)


def _run(
    module: ModuleType, case: Case, image: NDArray[np.uint8], unary: NDArray[np.float32], threads: int
) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Probabilities (labels, pixels) and the seconds of build and inference."""
    set_num_threads(threads)
    start = time.perf_counter()
    crf = module.DenseCRF2D(case.width, case.height, case.labels)
    crf.setUnaryEnergy(unary)
    crf.addPairwiseGaussian(sxy=case.gaussian.widths_xy, compat=case.gaussian.weight)
    crf.addPairwiseBilateral(
        sxy=case.bilateral.widths_xy,
        srgb=case.bilateral.widths_channels(3),
        rgbim=image,
        compat=case.bilateral.weight,
    )
    built = time.perf_counter()
    result = crf.inference(case.iterations)
    return np.asarray(result), (built - start, time.perf_counter() - built)


def _agreement(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> tuple[float, float]:
    equal = float(np.mean(ours.argmax(axis=0) == theirs.argmax(axis=0)))
    if not equal >= AGREEMENT:
        raise ValueError(
            f"{OURS} and {PEER} agree on {equal:.3%} of the labels only; times would compare different results"
        )
    return equal, float(np.abs(ours - theirs).max())
