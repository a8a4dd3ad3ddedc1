"""Photographs and their label images, as data sets: PASCAL VOC 2012, CamVid, and folders of one's own. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deeplab_crf.data.classes import CAMVID_CLASSES, VOC_CLASSES
from deeplab_crf.data.files import IMAGE_SUFFIXES, LABEL_SUFFIXES, files_by_stem
from deeplab_crf.data.images import read_image, read_labels

IGNORE = 255


@dataclass(frozen=True)
class Item:
    """One photograph and its label image, not yet read. name: the stem that they share."""

    name: str
    image: Path
    labels: Path


@dataclass(frozen=True, eq=False)
class Example:
    """What was read of an `Item`. image: uint8 RGB ``(H, W, 3)``. labels: uint8 ``(H, W)``, class ids and `IGNORE` for void."""

    name: str
    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]


class SegmentationFolder:
    """A folder of photographs and one of label images, matched by stem.

    images, labels: the folders. classes: names of the class ids 0, 1, ...; at most 255. names: which stems, in this order; None:
    every photograph, sorted. ``dataset[i]`` reads an `Example`.

    Raises ValueError that names the file: none at all, one that is missing, and, when it is read, sizes that differ between
    photograph and labels, and label values that are neither a class nor 255 (void). Also where two classes have one name.
    """

    def __init__(self, images: Path, labels: Path, classes: Sequence[str], names: Sequence[str] | None = None) -> None:
        if not 1 <= len(classes) <= IGNORE:
            raise ValueError(f"classes must name 1 to {IGNORE} classes; got {len(classes)}")
        self.classes = tuple(classes)
        twice = [name for name, count in Counter(self.classes).items() if count > 1]
        if twice:
            raise ValueError(f"classes must have different names; got {twice[0]!r} more than once")
        pictures, ids = _files(images, IMAGE_SUFFIXES), _files(labels, LABEL_SUFFIXES)
        chosen = tuple(pictures) if names is None else tuple(names)
        if not chosen:
            raise ValueError(f"{images}: no photographs ({_known(IMAGE_SUFFIXES)})")
        for name in chosen:
            for found, folder, kind, suffixes in (
                (pictures, images, "photograph", IMAGE_SUFFIXES),
                (ids, labels, "label image", LABEL_SUFFIXES),
            ):
                if name not in found:
                    cure = "lists hold names without suffix" if Path(name).stem in found else _known(suffixes)
                    raise ValueError(f"{folder}: no {kind} called {name!r} ({cure})")
        self.items = tuple(Item(name, pictures[name], ids[name]) for name in chosen)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Example:
        item = self.items[index]
        image, labels = read_image(item.image), read_labels(item.labels).ids
        if image.shape[:2] != labels.shape:
            lies = image.shape[:2] == labels.shape[::-1]
            raise ValueError(
                f"{item.labels}: labels must have the size of {item.image}, {image.shape[:2]}; got {labels.shape}"
                + (". If the photograph is turned by its EXIF alone, turn its pixels" if lies else "")
            )
        wrong = np.unique(labels[(labels != IGNORE) & ((labels < 0) | (labels >= len(self.classes)))])
        if wrong.size:
            raise ValueError(
                f"{item.labels}: label values must be 0..{len(self.classes) - 1} or {IGNORE} (void); got "
                f"{', '.join(map(str, wrong[:5]))}"
            )
        colours = np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image
        return Example(item.name, colours.astype(np.uint8), labels.astype(np.uint8))


def _files(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    return files_by_stem(folder, suffixes)


def _known(suffixes: frozenset[str]) -> str:
    return f"known: {', '.join(sorted(suffixes))}"


def read_names(path: Path) -> list[str]:
    """The names of a list in UTF-8, one a line; empty lines are left out. Raises ValueError if there is no such file, no name in
    it, or another encoding."""
    if not path.is_file():
        raise ValueError(f"{path}: no such list")
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors of Windows put a mark before the first name
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: cannot be read as a list of names ({error}); save it in UTF-8") from error
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{path}: the list is empty")
    return names


def camvid(root: Path, split: str) -> SegmentationFolder:
    """CamVid in the 11-class split of the SegNet papers: ``images/SPLIT``, ``labels/SPLIT`` and ``SPLIT.txt`` in ``root``.

    split: "train" (367), "val" (101) or "test" (233), or whatever lists there are.
    """
    return SegmentationFolder(
        root / "images" / split, root / "labels" / split, CAMVID_CLASSES, read_names(root / f"{split}.txt")
    )


def voc2012(root: Path, split: str) -> SegmentationFolder:
    """Pascal VOC 2012 (``VOCdevkit/VOC2012``): ``JPEGImages``, and ``SegmentationClassAug`` where it is there, else
    ``SegmentationClass``; the split is ``ImageSets/Segmentation/SPLIT.txt``.

    split: "train" (1464), "val" (1449), "trainval" (2913), and with the annotations of Hariharan et al. (ICCV 2011) "train_aug"
    (10582) and "trainval_aug" (12031), whose lists come as names, or as lines "/JPEGImages/X.jpg /SegmentationClassAug/X.png".
    """
    names = [_voc_name(line) for line in read_names(root / "ImageSets" / "Segmentation" / f"{split}.txt")]
    augmented = root / "SegmentationClassAug"
    labels = augmented if augmented.is_dir() else root / "SegmentationClass"
    return SegmentationFolder(root / "JPEGImages", labels, VOC_CLASSES, names)


def _voc_name(line: str) -> str:
    """ "X" of "X", and of "/JPEGImages/X.jpg /SegmentationClassAug/X.png"."""
    return Path(line.split()[0]).stem if "/" in line else line


def folder(root: Path, split: str) -> SegmentationFolder:
    """Folders of one's own: photographs in ``images/SPLIT`` or ``images``, label images in ``labels/SPLIT`` or ``labels``, names
    of the classes in ``classes.txt``, one a line; ``SPLIT.txt``, where it is there, says which and in what order."""
    images, labels = (
        root / kind / split if (root / kind / split).is_dir() else root / kind for kind in ("images", "labels")
    )
    chosen, classes = root / f"{split}.txt", read_names(root / "classes.txt")
    names = read_names(chosen) if chosen.is_file() else None
    if names is None and images.is_dir() and images.name != split and not files_by_stem(images, IMAGE_SUFFIXES):
        raise ValueError(
            f"{root}: no split {split!r}: neither {images / split}, nor {chosen}, nor photographs in {images}"
        )
    return SegmentationFolder(images, labels, classes, names)


DATASETS = {"camvid": camvid, "voc": voc2012, "folder": folder}


def open_dataset(kind: str, root: Path, split: str) -> SegmentationFolder:
    """The data set at ``root``. kind: "camvid", "voc" or "folder", see `camvid`, `voc2012` and `folder`. split: "train", ...

    Raises ValueError that names the file or folder which is missing, or the list which is empty.
    """
    if kind not in DATASETS:
        raise ValueError(f"data must be one of {', '.join(DATASETS)}; got {kind!r}")
    return DATASETS[kind](root, split)
