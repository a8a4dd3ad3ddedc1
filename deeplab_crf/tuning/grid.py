"""The points of a grid search, and the neighbourhood of the best one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from deeplab_crf.core.pairwise import Bilateral, Gaussian
from deeplab_crf.core.presets import Preset


class Setting(NamedTuple):
    """A point of the search: weights and standard deviations of both kernels, and iterations."""

    gaussian_weight: float
    gaussian_sxy: float
    bilateral_weight: float
    bilateral_sxy: float
    bilateral_srgb: float
    iterations: int

    @property
    def bandwidths(self) -> tuple[float, float, float]:
        """The values on which the lattices depend."""
        return self.gaussian_sxy, self.bilateral_sxy, self.bilateral_srgb

    def preset(self, name: str, normalization: str, description: str = "") -> Preset:
        """Return the point as a preset."""
        gaussian = Gaussian(self.gaussian_sxy, self.gaussian_weight)
        bilateral = Bilateral(self.bilateral_sxy, self.bilateral_srgb, self.bilateral_weight)
        return Preset(name, (gaussian, bilateral), self.iterations, normalization, description)


@dataclass(frozen=True)
class Grid:
    """The values to combine.

    The default is DeepLab V2's: w1 in 3..6, sigma_alpha in 30..100, sigma_beta in 3..6, with w2 =
    sigma_gamma = 3 and ten iterations.

    Raises:
        ValueError: A list is empty, a width not positive, a weight negative, or iterations are
            below 1.

    References:
        Chen et al., TPAMI 2017.
    """

    gaussian_weight: tuple[float, ...] = (3,)
    gaussian_sxy: tuple[float, ...] = (3,)
    bilateral_weight: tuple[float, ...] = (3, 4, 5, 6)
    bilateral_sxy: tuple[float, ...] = (30, 40, 50, 60, 70, 80, 90, 100)
    bilateral_srgb: tuple[float, ...] = (3, 4, 5, 6)
    iterations: tuple[int, ...] = (10,)

    def __post_init__(self) -> None:
        for name in Setting._fields:
            values = getattr(self, name)
            if not values:
                raise ValueError(f"{name} must hold at least one value; got none")
            for value in values:
                wanted, good = "positive and finite", 0 < value < float("inf")
                if name.endswith("weight"):
                    wanted, good = "finite and >= 0", 0 <= value < float("inf")
                elif name == "iterations":
                    wanted, good = "a whole number >= 1", value >= 1 and value == int(value)
                if not good:
                    raise ValueError(f"{name} must be {wanted}; got {value!r}")

    @property
    def free(self) -> tuple[str, ...]:
        """The axes with several values, except iterations: those that a search may refine."""
        return tuple(name for name in Setting._fields[:-1] if len(set(getattr(self, name))) > 1)

    def settings(self) -> list[Setting]:
        """Return every combination; those that share lattices are adjacent."""
        axes = (sorted(set(getattr(self, name))) for name in Setting._fields)
        return sorted((Setting(*point) for point in product(*axes)), key=lambda setting: setting.bandwidths)


def neighbours(best: Setting, tried: Sequence[Setting], free: Sequence[str]) -> list[Setting]:
    """Return the settings around the best one.

    Along each free axis, these are its value and the midpoints to the nearest values tried on
    either side. Beyond the largest (smallest) value tried, it is a whole step outwards instead, or
    half way to zero.

    Args:
        best: The best setting.
        tried: The settings that were tried.
        free: The axes to refine.
    """
    axes = []
    for name in Setting._fields:
        value = getattr(best, name)
        candidates = {value}
        if name in free:
            others = {getattr(setting, name) for setting in tried}
            below = max((other for other in others if other < value), default=None)
            above = min((other for other in others if other > value), default=None)
            if below is not None:
                candidates.add((below + value) / 2)
            elif above is not None and value > 0:
                outwards = value - (above - value)
                candidates.add(outwards if outwards > 0 else value / 2)
            if above is not None:
                candidates.add((value + above) / 2)
            elif below is not None:
                candidates.add(value + (value - below))
        axes.append(sorted(candidates))
    return sorted((Setting(*point) for point in product(*axes)), key=lambda setting: setting.bandwidths)


def on_the_edge(best: Setting, tried: Sequence[Setting], free: Sequence[str]) -> list[str]:
    """Return the free axes whose best value is the smallest or largest tried.

    A better one may lie beyond.
    """
    edges = []
    for name in free:
        values = [getattr(setting, name) for setting in tried]
        if getattr(best, name) in (min(values), max(values)):
            edges.append(name)
    return edges
