"""Refine the labels or scores of one image file, or of folders of them: what the ``refine`` command does.

The path of a file: `read_stored_image`, `read_scores`, `fit_to_image`, `dense_crf`, arg max, atomic writes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplab_crf.core.image_range import BYTES, ImageRange
from deeplab_crf.core.pairwise import Kernel, PairwiseKernel, check_normalization
from deeplab_crf.core.presets import get_preset
from deeplab_crf.crf.functional import dense_crf
from deeplab_crf.data.images import LabelImage, overlay, write_image, write_labels
from deeplab_crf.data.label_coding import LabelCoding
from deeplab_crf.data.label_files import PLAIN
from deeplab_crf.data.rasters import StoredImage, read_stored_image
from deeplab_crf.data.scores import UNSURE, Scores, fit_to_image, fits_image, read_scores
from deeplab_crf.runtime.files import ARRAY_SUFFIXES, IMAGE_SUFFIXES, LABEL_SUFFIXES, atomic_write, files_by_stem

_DEFAULT = get_preset("pydensecrf")
_AS_STORED = "labels or scores belong to the image as it is stored, not as its EXIF turns it, and so does the result"
ORIENTATIONS = ("upright", "stored")


@dataclass(frozen=True)
class RefineSettings:
    """How to refine. kernels to device: as `deeplab_crf.dense_crf` takes them; threads None is the package's default.

    image_range: values of black and white of the image file, see `StoredImage.values`. orientation: which pixels labels and
    scores belong to, "upright" (as EXIF turns them) or "stored"; None: the size tells, see `StoredImage.is_upright_for`.
    scores_are, key, num_labels, ignore_label, coding, cam_background: as `deeplab_crf.data.scores.read_scores` takes them.
    align_corners: how coarse scores are upsampled, see `fit_to_image`.
    """

    kernels: tuple[Kernel, ...] = _DEFAULT.kernels
    iterations: int = _DEFAULT.iterations
    normalization: str = _DEFAULT.normalization
    confidence: float = 0.7
    damping: float = 0.0
    tolerance: float = 0.0
    threads: int | None = None
    device: str = "cpu"
    image_range: ImageRange | None = None
    orientation: str | None = None
    scores_are: str | None = None
    key: str | None = None
    num_labels: int | None = None
    ignore_label: int | None = 255
    coding: LabelCoding = PLAIN
    cam_background: str | None = None
    align_corners: bool = False

    def __post_init__(self) -> None:
        check_normalization(self.normalization)
        for kernel in self.kernels:
            if not isinstance(kernel, PairwiseKernel):
                kernel.widths_axes(2)  # volumes have three

    def recorded(self) -> dict[str, Any]:
        """What changes the results, by name, for `ResultFolder`: all but the number of threads, and which of several GPUs."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "threads"}
        return {"command": "refine", **values, "device": self.device.partition(":")[0]}


@dataclass(frozen=True)
class Job:
    """One image: photograph and scores to read, label image (and overlay and probabilities if asked for) to write."""

    image: Path
    scores: Path
    labels_out: Path
    overlay_out: Path | None = None
    probabilities_out: Path | None = None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The files this job reads, the image first."""
        return self.image, self.scores

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The files this job writes, the label image last."""
        return tuple(path for path in (self.probabilities_out, self.overlay_out, self.labels_out) if path is not None)


@dataclass(frozen=True)
class Plan:
    """The jobs of two folders, and the stems that have no partner in the other one."""

    jobs: tuple[Job, ...]
    without_image: tuple[Path, ...]
    without_scores: tuple[Path, ...]


def plan_file(
    image: Path, scores: Path, out: Path, *, with_overlay: bool = False, with_probabilities: bool = False
) -> Job:
    """The job that writes ``out``, and beside it, if asked for, <stem>_overlay.png and <stem>_probabilities.npz."""
    job = Job(
        image,
        scores,
        out,
        out.with_name(f"{out.stem}_overlay.png") if with_overlay else None,
        out.with_name(f"{out.stem}_probabilities.npz") if with_probabilities else None,
    )
    _check_outputs([job])
    return job


def plan_folders(
    images: Path, scores: Path, out: Path, *, with_overlay: bool = False, with_probabilities: bool = False
) -> Plan:
    """The jobs for two folders whose files are matched by stem; results are called as the image, ``<stem>.png`` in ``out``.

    Raises ValueError where nothing matches, two files share a stem, or a result would overwrite an input.
    """
    photographs = files_by_stem(images, IMAGE_SUFFIXES)
    maps = files_by_stem(scores, LABEL_SUFFIXES | ARRAY_SUFFIXES)
    both = [stem for stem in maps if stem in photographs]
    if not both:
        raise ValueError(
            f"no file of {scores} has the stem of an image in {images} ({len(photographs)} images, {len(maps)} label "
            "or score files): name them alike, such as cat.jpg and cat.png"
        )
    jobs = tuple(
        plan_file(
            photographs[stem],
            maps[stem],
            out / f"{photographs[stem].stem}.png",
            with_overlay=with_overlay,
            with_probabilities=with_probabilities,
        )
        for stem in both
    )
    _check_outputs(jobs)
    return Plan(
        jobs,
        tuple(path for stem, path in maps.items() if stem not in photographs),
        tuple(path for stem, path in photographs.items() if stem not in maps),
    )


def _check_outputs(jobs: Iterable[Job]) -> None:
    """No result may take the place of an input or of another result."""
    jobs = list(jobs)
    inputs = {path.resolve() for job in jobs for path in (job.image, job.scores)}
    seen: set[Path] = set()
    for path in (path for job in jobs for path in job.outputs):
        resolved = path.resolve()
        if resolved in inputs:
            raise ValueError(f"{path} is an input and would be overwritten; choose another place with -o")
        if resolved in seen:
            raise ValueError(f"two results would be called {path}; rename one of the inputs")
        seen.add(resolved)


def refine_file(job: Job, settings: RefineSettings) -> tuple[str, ...]:
    """Do one job. Returns remarks for the user, such as that scores were upsampled.

    Each file appears whole or not at all. Raises ValueError, as `dense_crf` does or naming the file at fault.
    """
    stored = read_stored_image(job.image)
    upright = _is_upright(stored, job, settings)
    image = stored.values(settings.image_range, upright=upright)
    height, width = image.shape[:2]
    read = _read_scores(job, settings, (height, width))
    scores = fit_to_image(read, height, width, align_corners=settings.align_corners, name=str(job.scores))
    remarks = [] if read.size == scores.size else [_upsampled(read.size, scores.size)]
    if not upright and stored.orientation != 1:
        remarks.append(_AS_STORED)
    probabilities = _refine(image, scores, settings)
    labels = LabelImage(scores.class_ids[probabilities.argmax(axis=0)], scores.palette)
    if job.probabilities_out is not None:
        with atomic_write(job.probabilities_out) as stream:
            np.savez(stream, probabilities=probabilities, classes=scores.class_ids)
    if job.overlay_out is not None:
        write_image(job.overlay_out, overlay(image, labels))
    write_labels(job.labels_out, labels)
    return tuple(remarks)


def _is_upright(stored: StoredImage, job: Job, settings: RefineSettings) -> bool:
    """Whether the labels or scores belong to the upright image, instead of the image as it is stored."""
    if settings.orientation is not None:
        return settings.orientation == "upright"

    def fits(size: tuple[int, int]) -> bool:
        try:
            return fits_image(_read_scores(job, settings, size), *size)
        except ValueError:  # of another size, or bad for either
            return False

    return stored.is_upright_for(fits, job.scores, "Say --orientation upright or stored")


def _read_scores(job: Job, settings: RefineSettings, image_size: tuple[int, int]) -> Scores:
    return read_scores(
        job.scores,
        kind=settings.scores_are,
        key=settings.key,
        num_labels=settings.num_labels,
        ignore_label=settings.ignore_label,
        image_size=image_size,
        coding=settings.coding,
        cam_background=settings.cam_background,
    )


def _upsampled(old: tuple[int, int], new: tuple[int, int]) -> str:
    return f"scores of {old[0]} x {old[1]} were upsampled bilinearly to {new[0]} x {new[1]} (rows x columns)"


def _refine(
    image: NDArray[np.uint8] | NDArray[np.float32], scores: Scores, settings: RefineSettings
) -> NDArray[np.floating]:
    """(C, H, W) probabilities."""
    if len(scores.class_ids) == 1:  # nothing to decide, and log(1 - confidence) has no other class to go to
        return np.ones((1, *scores.size), dtype=np.float32)
    given: dict[str, Any] = {scores.kind: scores.values}
    if scores.kind == "labels":
        given |= {"num_labels": len(scores.class_ids), "ignore_label": UNSURE, "confidence": settings.confidence}
    result: NDArray[np.floating] = dense_crf(
        image,
        **given,
        kernels=settings.kernels,
        iterations=settings.iterations,
        normalization=settings.normalization,
        damping=settings.damping,
        tolerance=settings.tolerance,
        threads=settings.threads,
        device=settings.device,
        image_range=BYTES,
    )
    return result
