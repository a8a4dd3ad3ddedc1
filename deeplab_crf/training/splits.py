"""The images to train and to validate on: two splits of a data set, or one that is cut in two."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deeplab_crf.data.datasets import SegmentationFolder, held_back, open_dataset
from deeplab_crf.evaluation.class_pixels import absent_classes, check_two_classes, count_pixels, shortened
from deeplab_crf.runtime.processes import World
from deeplab_crf.training.settings import TrainSettings


@dataclass(frozen=True, eq=False)
class Splits:
    """The images of a training.

    Args:
        train: The images to train on.
        validation: The images to validate on, or None.
        held_back: The names that ``val_fraction`` took from the train split.
        notes: Sentences for the user.
    """

    train: SegmentationFolder
    validation: SegmentationFolder | None
    held_back: tuple[str, ...]
    notes: tuple[str, ...]


def open_splits(settings: TrainSettings, world: World) -> Splits:
    """Open the splits of a training.

    Raises:
        ValueError: Data are missing, or labels hold fewer than two classes: nothing could be
            learnt, and every validation would be perfect.
    """
    coding = settings.coding
    train = open_dataset(settings.data, Path(settings.root), settings.train_split, coding)
    validation, notes = None, []
    held: tuple[str, ...] = ()
    if settings.val_fraction:
        every = [item.name for item in train.items]
        held = tuple(held_back(every, settings.val_fraction, settings.val_seed))
        train, validation = train.only(set(every) - set(held)), train.only(held)
        notes.append(
            f"{len(held)} of the {len(every)} images of {settings.train_split} are held back for validation, by "
            f"val_fraction {settings.val_fraction:g} and val_seed {settings.val_seed}: {shortened(held)}"
        )
    elif settings.val_split:
        validation = open_dataset(settings.data, Path(settings.root), settings.val_split, coding)
        both = {item.image for item in train.items} & {item.image for item in validation.items}
        if both:
            notes.append(
                f"the training sees {len(both)} of the {len(validation)} images of {settings.val_split} too: the "
                "validation says little about others"
            )
    notes += _absent(train, settings.train_split, world, "learnt")
    if validation is not None:
        name = f"the part of {settings.train_split} that is held back" if held else settings.val_split
        notes += _absent(validation, name, world, "measured")
    return Splits(train, validation, held, tuple(notes))


def _absent(dataset: SegmentationFolder, name: str, world: World, purpose: str) -> list[str]:
    """Check labels and orientations; return a note of the classes without a pixel.

    The processes share the images out among them.
    """
    share = range(world.rank, len(dataset), world.size)
    dataset.check_orientations(share)
    counts = np.sum(world.gather(count_pixels(dataset, share, enough=len(dataset.classes))), axis=0)
    check_two_classes(dataset, name, counts, purpose)
    absent = absent_classes(dataset.classes, counts)
    effect = "cannot be learnt" if purpose == "learnt" else "are left out of the mean IoU unless they are predicted"
    return [f"no pixel in the labels of {name} is of {absent}: these classes {effect}"] if absent else []
