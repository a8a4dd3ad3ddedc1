"""Segment image files with a network and its CRF: what the ``segment`` command does.

The path of a file: `read_image`, `SegmentationPipeline.predict`, arg max, atomic writes. Torch is loaded by the pipeline alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from deeplab_crf.core.image_range import ImageRange
from deeplab_crf.data.classes import class_names, class_palette
from deeplab_crf.data.figures import figure, legend
from deeplab_crf.data.images import LabelImage, as_rgb, overlay, write_image, write_labels
from deeplab_crf.data.rasters import read_image
from deeplab_crf.data.results import FileJob
from deeplab_crf.runtime.files import IMAGE_SUFFIXES, files_by_stem, matching_name

if TYPE_CHECKING:
    from deeplab_crf.models.pipeline import SegmentationPipeline

LEGEND_WIDTH = 480


@dataclass(frozen=True)
class SegmentJob:
    """One image: image to read, label image (and images, if asked for) to write."""

    image: Path
    labels_out: Path
    overlay_out: Path | None = None
    figure_out: Path | None = None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The file this job reads."""
        return (self.image,)

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The files this job writes, the label image last."""
        return tuple(path for path in (self.overlay_out, self.figure_out, self.labels_out) if path is not None)


def plan_images(inputs: Sequence[Path], out: Path, *, with_figures: bool = True) -> tuple[SegmentJob, ...]:
    """The jobs for image files and for the images of folders: ``out/STEM.png``, and with images ``out/overlays/STEM.png`` and
    ``out/figures/STEM.png``.

    Raises ValueError where there is no image, two images share a stem, or a result would overwrite an image.
    """
    jobs: dict[str, SegmentJob] = {}
    for image in _images(inputs):
        stem = matching_name(image.stem)
        if stem in jobs:
            raise ValueError(f"the results of {jobs[stem].image} and {image} would have the same name; rename one")
        name = f"{image.stem}.png"
        images = (out / "overlays" / name, out / "figures" / name) if with_figures else (None, None)
        jobs[stem] = SegmentJob(image, out / name, *images)
    if not jobs:
        raise ValueError(f"no image in {', '.join(map(str, inputs))} (known: {', '.join(sorted(IMAGE_SUFFIXES))})")
    read = {job.image.resolve() for job in jobs.values()}
    for path in (path for job in jobs.values() for path in job.outputs):
        if path.resolve() in read:
            raise ValueError(f"{path} is an input and would be overwritten; choose another folder with -o")
    return tuple(jobs.values())


def _images(inputs: Sequence[Path]) -> Iterable[Path]:
    for path in inputs:
        yield from files_by_stem(path, IMAGE_SUFFIXES).values() if path.is_dir() else [path]


def segment_file(job: SegmentJob, pipeline: SegmentationPipeline, image_range: ImageRange | None = None) -> None:
    """Do one job. Images are turned and mirrored as their EXIF says, and so is the result.

    pipeline: one for images in 0..255, whatever their values (``image_range=(0, 255)``). image_range: the values of black and
    white in the file, see `read_image`. Each file appears whole or not at all. Raises ValueError that names the file at fault.
    """
    image = read_image(job.image, image_range)
    (result,) = pipeline.predict(image)
    names = _class_names(pipeline)
    colours = class_palette(names)
    labels, before = (LabelImage(ids.cpu().numpy(), colours) for ids in (result.labels, result.network_labels))
    if job.overlay_out is not None:
        write_image(job.overlay_out, overlay(image, labels))
    if job.figure_out is not None:
        panels = [
            ("image", Image.fromarray(as_rgb(image).clip(0, 255).astype(np.uint8))),
            ("network", overlay(image, before)),
        ]
        if pipeline.crf is not None:
            panels.append(("network and CRF", overlay(image, labels)))
        seen = {int(i): names[i] for i in np.union1d(before.ids, labels.ids)}
        write_image(job.figure_out, figure(panels, seen, colours))
    write_labels(job.labels_out, labels)


def _class_names(pipeline: SegmentationPipeline) -> tuple[str, ...]:
    """As the weights say, else as `class_names`."""
    return pipeline.network.usage.classes or class_names(pipeline.network.num_classes)


def legend_job(folder: Path) -> FileJob:
    """The legend of the images in ``folder``, which is a result of its own."""
    return FileJob((), (folder / "legend" / "legend.png",))


def write_legend(folder: Path, pipeline: SegmentationPipeline) -> None:
    """Write ``folder/legend/legend.png``: the colours of all classes and their names."""
    (path,) = legend_job(folder).outputs
    names = _class_names(pipeline)
    write_image(path, legend(dict(enumerate(names)), LEGEND_WIDTH, class_palette(names)))
