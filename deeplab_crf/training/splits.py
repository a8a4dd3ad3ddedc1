"""What a training trains on and what it validates on: two splits of a data set, or one that is cut in two."""

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
    """validation: None where nothing is validated. held_back: the names that ``val_fraction`` took from the train split. notes:
    what the user should know of them, a sentence each."""

    train: SegmentationFolder
    validation: SegmentationFolder | None
    held_back: tuple[str, ...]
    notes: tuple[str, ...]


def open_splits(settings: TrainSettings, world: World) -> Splits:
    """The splits of a training.

    Raises ValueError for data that are not there, and where labels hold fewer than two classes: nothing could be learnt, and a
    validation would find everything right.
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
            f"{len(held)} of the {len(every)} photographs of {settings.train_split} are held back for validation, by "
            f"val_fraction {settings.val_fraction:g} and val_seed {settings.val_seed}: {shortened(held)}"
        )
    elif settings.val_split:
        validation = open_dataset(settings.data, Path(settings.root), settings.val_split, coding)
        both = {item.image for item in train.items} & {item.image for item in validation.items}
        if both:
            notes.append(
                f"the training sees {len(both)} of the {len(validation)} photographs of {settings.val_split} too: the "
                "validation says little about others"
            )
    notes += _absent(train, settings.train_split, world, "learnt")
    if validation is not None:
        name = f"the part of {settings.train_split} that is held back" if held else settings.val_split
        notes += _absent(validation, name, world, "measured")
    return Splits(train, validation, held, tuple(notes))


def _absent(dataset: SegmentationFolder, name: str, world: World, purpose: str) -> list[str]:
    """A note of the classes that no pixel has. The processes share the images out among them.

    Raises ValueError for what would end the training or make it pointless: labels, and orientations that are not known.
    """
    share = range(world.rank, len(dataset), world.size)
    dataset.check_orientations(share)
    counts = np.sum(world.gather(count_pixels(dataset, share, enough=len(dataset.classes))), axis=0)
    check_two_classes(dataset, name, counts, purpose)
    absent = absent_classes(dataset.classes, counts)
    what = "cannot be learnt" if purpose == "learnt" else "are left out of the mean IoU unless they are predicted"
    return [f"no pixel in the labels of {name} is of {absent}: these classes {what}"] if absent else []
