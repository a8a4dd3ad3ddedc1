"""The papers' search for the numbers of a CRF, from coarse to fine, on saved scores.

It tries a grid, then the neighbourhood of the best in ever smaller steps.

References:
    Krähenbühl & Koltun, NIPS 2011; Chen et al., ICLR 2015.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeAlias

from deeplab_crf.core.mean_field import MeanField
from deeplab_crf.core.pairwise import check_normalization
from deeplab_crf.evaluation.metrics import ConfusionMatrix
from deeplab_crf.tuning.grid import Grid, Setting, neighbours
from deeplab_crf.tuning.images import FLOAT, PreparedImage, TuneImages
from deeplab_crf.tuning.table import Trial, TrialTable, best_trial

# Takes a title and the number of steps; the block gets a function to call with steps that are done.
ProgressBar: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


class GridSearch:
    """A search over images. Results are stored in a table and never computed twice.

    For an image and a set of bandwidths, lattices are built once for all weights and iterations.
    Energies, features and the Gaussian lattice are cached for all settings (`TuneImages`). Images
    run side by side, one thread each. Results have the bits of `dense_crf`.

    Args:
        images: The images.
        table: The trials so far.
        normalization: How kernels are normalised.
        bar: Makes progress bars.
    """

    def __init__(self, images: TuneImages, table: TrialTable, normalization: str, bar: ProgressBar) -> None:
        self.images, self.table = images, table
        self.normalization = check_normalization(normalization)
        self._bar = bar
        self.seconds, self.computed = 0.0, 0  # CPU seconds of all threads, for so many images times settings

    def run(self, grid: Grid, rounds: int) -> Trial:
        """Try the grid, then ``rounds`` times the neighbourhood of the best setting so far.

        The points depend on the grid alone, not on other trials in the table: a repeated search
        computes nothing.

        Returns:
            The best trial of the table.
        """
        seen = self._try(grid.settings(), 0)
        for number in range(1, rounds + 1):
            around = neighbours(best_trial(seen).setting, [trial.setting for trial in seen], grid.free)
            seen += self._try([setting for setting in around if setting not in {each.setting for each in seen}], number)
        return best_trial(self.table.trials)

    def _try(self, settings: Sequence[Setting], number: int) -> list[Trial]:
        """Return the trials of these settings; compute those that the table lacks."""
        known = {trial.setting for trial in self.table.trials}
        groups: dict[tuple[float, ...], list[Setting]] = defaultdict(list)
        for setting in settings:
            if setting not in known:
                groups[setting.bandwidths].append(setting)
        steps = len(self.images) * sum(map(len, groups.values()))
        with self._bar("grid" if number == 0 else f"round {number}", steps) as advance:
            for group in groups.values():
                self.table.add(self._trials(group, number, advance))
        return [trial for trial in self.table.trials if trial.setting in set(settings)]

    def _trials(self, group: Sequence[Setting], number: int, advance: Callable[[int], None]) -> list[Trial]:
        totals = [ConfusionMatrix(self.images.num_classes) for _ in group]

        def work(image: PreparedImage) -> tuple[list[ConfusionMatrix], float]:
            begin = time.thread_time()
            return confusions(image, group, self.normalization), time.thread_time() - begin

        def done(result: tuple[list[ConfusionMatrix], float]) -> None:
            for total, one in zip(totals, result[0], strict=True):
                total.merge(one)
            self.seconds += result[1]
            self.computed += len(group)

        self.images.for_each(work, done, lambda: advance(len(group)))
        return [
            Trial(setting, number, total.mean_iou, total.pixel_accuracy)
            for setting, total in zip(group, totals, strict=True)
        ]


def confusions(image: PreparedImage, group: Sequence[Setting], normalization: str) -> list[ConfusionMatrix]:
    """Return the confusion matrix of an image for each setting of a group with equal bandwidths.

    Lattices are built once. Where only iterations differ, inference continues from the fewer.
    """
    gaussian = image.gaussian_lattice(group[0].gaussian_sxy)
    bilateral = image.bilateral_lattice(group[0].bilateral_sxy, group[0].bilateral_srgb)
    by_weights: dict[tuple[float, float], set[int]] = defaultdict(set)
    for setting in group:
        by_weights[setting.gaussian_weight, setting.bilateral_weight].add(setting.iterations)
    found: dict[tuple[tuple[float, float], int], ConfusionMatrix] = {}
    for weights, iterations in by_weights.items():
        labels, points = image.unary.shape
        field = MeanField(points, labels, dtype=FLOAT, threads=1, order=image.points.order)
        for lattice, weight in zip((gaussian, bilateral), weights, strict=True):
            field.add_kernel(lattice, weight, normalization=normalization)
        beliefs, done = None, 0
        for count in sorted(iterations):
            beliefs = field.inference(image.unary, count - done, q=beliefs, check_finite=False).probabilities
            found[weights, count] = image.confusion(beliefs)
            done = count
    return [found[(each.gaussian_weight, each.bilateral_weight), each.iterations] for each in group]
