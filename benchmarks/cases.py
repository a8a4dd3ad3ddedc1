"""The problems that are timed: eight settings of the literature, an image, and scores like a network's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
# 500 x 375 as it is, and in the middle of twenty images by its number of vertices.
SHARED_PHOTOGRAPH = ROOT.parent / "shared" / "data" / "crf" / "part_2008_007586.jpg"
BUNDLED_PHOTOGRAPH = ROOT / "deeplab_crf" / "data" / "sample" / "astronaut.jpg"
SYNTHETIC = "synthetic"

OUTPUT_STRIDE = 8  # the networks' score maps are this much smaller than the image
ACTIVE_LABELS = 4  # as many classes have a say in a typical image
SMALLEST_PROBABILITY = 1e-5  # where clients of pydensecrf clip before the logarithm


@dataclass(frozen=True)
class Case:
    """One row of the table. Widths: sxy in pixels, srgb in grey levels; compatibilities are Potts weights."""

    width: int
    height: int
    labels: int
    iterations: int
    gaussian: tuple[float, float]  # sxy, weight
    bilateral: tuple[float, float, float]  # sxy, srgb, weight

    @property
    def name(self) -> str:
        """For tables and files."""
        settings = f"{self.bilateral[0]:g}/{self.bilateral[1]:g}"
        return f"{self.width}x{self.height}x{self.labels}, {self.iterations} it, {settings}"

    @property
    def points(self) -> int:
        """N."""
        return self.width * self.height

    @property
    def sparse(self) -> bool:
        """Whether colours are so narrow that rounding on faces of the lattice moves single probabilities."""
        return self.bilateral[1] < 10

    def to_json(self) -> dict[str, Any]:
        """Plain data, from which `from_json` makes the same case."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Case:
        """The inverse of `to_json`."""
        return cls(**{**data, "gaussian": tuple(data["gaussian"]), "bilateral": tuple(data["bilateral"])})


CASES = (
    Case(320, 213, 21, 5, (3, 3), (80, 13, 10)),
    Case(500, 375, 21, 5, (3, 3), (80, 13, 10)),
    Case(500, 375, 21, 10, (3, 3), (80, 13, 10)),
    Case(500, 375, 21, 10, (3, 3), (50, 5, 10)),
    Case(500, 375, 21, 10, (3, 3), (121, 5, 4)),
    Case(500, 375, 21, 10, (1, 3), (67, 3, 4)),
    Case(1024, 768, 21, 5, (3, 3), (80, 13, 10)),
    Case(500, 375, 150, 5, (3, 3), (80, 13, 10)),
)
LARGE_CASES = CASES[6:]  # those whose memory the package promises to halve
QUICK_CASES = (CASES[0], CASES[1], CASES[5])
HUGE_CASE = Case(4096, 4096, 21, 5, (3, 3), (80, 13, 10))


def default_image() -> str:
    """The image of the shared data where it lies beside the repository, else the one the package carries."""
    return str(SHARED_PHOTOGRAPH if SHARED_PHOTOGRAPH.exists() else BUNDLED_PHOTOGRAPH)


def synthetic_image(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: a sum of octaves of noise, as natural images have it, with a few hard edges and sensor noise.

    At 500 x 375 M/N is 0.05 (80/13), 0.24 (121/5), 0.43 (50/5) and 1.04 (67/3), as in the middle of real images.
    """
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for octave in range(1, 9):
        cells = 2**octave
        grid = rng.normal(size=(cells + 1, cells + 1, 3))
        planes = [_resized(grid[..., channel], width, height) for channel in range(3)]
        total += np.stack(planes, axis=-1) / cells**0.6
    grey = total.mean(axis=-1, keepdims=True)
    colours = 110 + 130 * (0.8 * grey + 0.2 * total) + 45 * np.sign(grey)  # colours vary less than brightness
    noisy: NDArray[np.uint8] = np.clip(colours + rng.normal(0.0, 3.0, colours.shape), 0, 255).astype(np.uint8)
    return noisy


def load_image(source: str, width: int, height: int) -> NDArray[np.uint8]:
    """The image at ``source`` (a path, or "synthetic") at the size of a case: (H, W, 3) uint8."""
    if source == SYNTHETIC:
        return synthetic_image(width, height)
    with Image.open(source) as image:
        return np.array(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))


def network_unary(case: Case, seed: int = 0) -> NDArray[np.float32]:
    """Energies (L, N) as a network's upsampled scores give them: a few classes with regions of their own, the rest low.

    The same seed gives the same scores; labels are worked on one at a time, so memory stays near the result's.
    """
    rng = np.random.default_rng(seed)
    rows, columns = -(-case.height // OUTPUT_STRIDE), -(-case.width // OUTPUT_STRIDE)
    active = rng.permutation(case.labels)[:ACTIVE_LABELS]
    unary = np.empty((case.labels, case.points), np.float32)
    for label in range(case.labels):
        score = rng.normal(0.0, 0.7, (rows, columns))
        if label in active:
            region = _resized(rng.normal(0.0, 1.0, (5, 6)), columns, rows)
            score += 4.0 + 6.0 * region
        else:
            score -= 3.0
        unary[label] = _resized(score, case.width, case.height).reshape(-1)
    return _energies_of_scores(unary)


def _energies_of_scores(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """-log max(softmax(scores), 1e-5) in place."""
    scores -= scores.max(axis=0)
    total = np.zeros(scores.shape[1], np.float32)
    for row in scores:
        total += np.exp(row)
    np.log(total, out=total)
    for row in scores:
        row -= total
        np.maximum(row, np.log(SMALLEST_PROBABILITY), out=row)
        np.negative(row, out=row)
    return scores


def _resized(plane: NDArray[Any], width: int, height: int) -> NDArray[np.float32]:
    """Bilinear, as the networks upsample."""
    image = Image.fromarray(plane.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
