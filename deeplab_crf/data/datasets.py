"""Images and their label images, as data sets: PASCAL VOC 2012, CamVid, and folders of one's own. No torch."""

from __future__ import annotations

import copy
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deeplab_crf.data.classes import CAMVID_CLASSES, VOC_CLASSES
from deeplab_crf.data.label_coding import LabelCoding
from deeplab_crf.data.label_files import PLAIN, Size, read_labels
from deeplab_crf.data.rasters import StoredImage, read_header, read_stored_image
from deeplab_crf.runtime.files import IMAGE_SUFFIXES, LABEL_SUFFIXES, files_by_stem, matching_name

IGNORE = 255
_TURN = "Save the image with its pixels turned (PIL.ImageOps.exif_transpose), or without its EXIF"
WHOLE = ("all", "train")  # what all images of a plain folder may be called, one without splits

_SUFFIX = "|".join(suffix[1:] for suffix in sorted(IMAGE_SUFFIXES))
_PAIR_OF_FILES = re.compile(rf"(.+?\.(?:{_SUFFIX}))[\s,;]+(\S.*)", re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """One image and its label image, not yet read. name: the stem that they share."""

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
    """A folder of images and one of label images, matched by stem.

    images, labels: the folders. classes: names of the class ids 0, 1, ...; at most 255. names: which stems, in this order; None:
    every image, sorted. coding: how the values of label images become class ids. ``dataset[i]`` reads an `Example`.

    Raises ValueError that names the file: none at all, one that is missing, and, when it is read, sizes that differ between
    image and labels, and label values that are neither a class nor 255 (void). Also where two classes have one name, and
    where a name comes twice, whose pixels would count twice. An image that its EXIF turns is taken as its labels are, upright or as
    it is stored, and is an error where their size does not tell.
    """

    def __init__(
        self,
        images: Path,
        labels: Path,
        classes: Sequence[str],
        names: Sequence[str] | None = None,
        coding: LabelCoding = PLAIN,
    ) -> None:
        if not 1 <= len(classes) <= IGNORE:
            raise ValueError(f"classes must name 1 to {IGNORE} classes; got {len(classes)}")
        self.classes, self.coding = tuple(classes), coding
        twice = [name for name, count in Counter(self.classes).items() if count > 1]
        if twice:
            raise ValueError(f"classes must have different names; got {twice[0]!r} more than once")
        image_files, ids = _files(images, IMAGE_SUFFIXES), _files(labels, LABEL_SUFFIXES)
        chosen = tuple(image_files) if names is None else tuple(names)
        if not chosen:
            raise ValueError(f"{images}: no images ({_known(IMAGE_SUFFIXES)})")
        again = [name for name, count in Counter(map(matching_name, chosen)).items() if count > 1]
        if again:
            raise ValueError(f"names must be different; got {again[0]!r} more than once, which would count as often")
        for name in chosen:
            for found, folder, kind, suffixes in (
                (image_files, images, "image", IMAGE_SUFFIXES),
                (ids, labels, "label image", LABEL_SUFFIXES),
            ):
                if matching_name(name) not in found:
                    bare = matching_name(Path(name).stem)
                    hint = "lists hold names without suffix" if bare in found else _known(suffixes)
                    raise ValueError(f"{folder}: no {kind} called {name!r} ({hint})")
        found_names = [matching_name(name) for name in chosen]
        self.items = tuple(Item(image_files[name].stem, image_files[name], ids[name]) for name in found_names)

    def __len__(self) -> int:
        return len(self.items)

    def only(self, names: Iterable[str]) -> SegmentationFolder:
        """Return this data set reduced to the images called ``names``, in the order of this data set."""
        chosen = frozenset(map(matching_name, names))
        part = copy.copy(self)
        part.items = tuple(item for item in self.items if matching_name(item.name) in chosen)
        return part

    def read_labels(self, index: int) -> NDArray[np.uint8]:
        """The labels of `Example` alone, without the image."""
        item = self.items[index]
        labels = read_labels(item.labels, self.coding).ids
        self._check_values(item, labels)
        return labels.astype(np.uint8)

    def check_orientations(self, indices: Iterable[int]) -> None:
        """Raises ValueError, as reading them would, for images that EXIF turns and whose labels do not tell whether it should.
        Reads the headers of images, and the labels of those that EXIF turns."""
        for index in indices:
            item = self.items[index]
            header = read_header(item.image)
            if header is not None and header.orientation != 1:
                size = self.read_labels(index).shape
                header.is_upright_for(lambda found, size=size: found == size, item.labels, _TURN)  # type: ignore[misc]

    def __getitem__(self, index: int) -> Example:
        item = self.items[index]
        stored = read_stored_image(item.image)
        labels = read_labels(item.labels, self.coding, lambda found: _check_size(stored, item, found)).ids
        image = _pixels(stored, stored.is_upright_for(lambda size: size == labels.shape, item.labels, _TURN))
        self._check_values(item, labels)
        colours = np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image
        return Example(item.name, colours, labels.astype(np.uint8))

    def _check_values(self, item: Item, labels: NDArray[np.int64]) -> None:
        wrong = np.unique(labels[(labels != IGNORE) & ((labels < 0) | (labels >= len(self.classes)))])
        if wrong.size:
            raise ValueError(
                f"{item.labels}: label values must be 0..{len(self.classes) - 1} or {IGNORE} (void); got "
                f"{', '.join(map(str, wrong[:5]))}{_remedy(wrong, len(self.classes))}"
            )


def _check_size(image: StoredImage, item: Item, labels: Size) -> None:
    """Raises ValueError where labels have neither the size of the upright image nor that of the image as it is stored."""
    size = image.size(upright=True)
    if labels not in (size, image.size(upright=False)):
        hint = ". One of them lies on its side: turn its pixels" if labels == size[::-1] else ""
        raise ValueError(f"{item.labels}: labels must have the size of {item.image}, {size}; got {labels}{hint}")


def _pixels(image: StoredImage, upright: bool) -> NDArray[np.uint8]:
    """The image in 8 bits. Raises ValueError naming the file for other depths and for more bands than RGB."""
    if image.pixels.dtype != np.uint8:
        raise ValueError(
            f"{image.path}: images of a data set must have 8 bits; got {image.pixels.dtype} with values in "
            f"{image.pixels.min():.4g}..{image.pixels.max():.4g}. Convert it"
        )
    if image.pixels.ndim == 3 and image.pixels.shape[2] != 3:
        raise ValueError(f"{image.path}: images of a data set must be gray or RGB; got {image.pixels.shape[2]} bands")
    return image.values(upright=upright).astype(np.uint8, copy=False)


def _remedy(wrong: NDArray[np.int64], classes: int) -> str:
    """What to do about ids that are no class, where that is known."""
    if 65535 in wrong:
        return ". 65535 is usually void in 16-bit label images: --map-labels 65535=255"
    if wrong.tolist() == [classes]:
        return f". If the ids start at 1: --map-labels 0=255,1..{classes}=0..{classes - 1}"
    return ""


def _files(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    return files_by_stem(folder, suffixes)


def _known(suffixes: frozenset[str]) -> str:
    return f"known: {', '.join(sorted(suffixes))}"


def held_back(names: Sequence[str], fraction: float, seed: int) -> list[str]:
    """The names of the share ``fraction`` that a training holds back for validation, at least one and never all of them.

    They are chosen by a hash of seed and name, and come in the order that they have: neither the order nor the machine matters.
    Raises ValueError for a fraction outside of (0, 1), and for fewer than two names.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"val_fraction must be between 0 and 1, 0 and 1 excluded; got {fraction!r}")
    if len(names) < 2:
        raise ValueError(f"val_fraction needs at least 2 images, one of them to train on; got {len(names)}")

    def rank(name: str) -> bytes:
        return hashlib.sha256(f"{seed} {matching_name(name)}".encode(errors="surrogatepass")).digest()

    count = min(max(round(fraction * len(names)), 1), len(names) - 1)
    chosen = frozenset(sorted(names, key=rank)[:count])
    return [name for name in names if name in chosen]


def read_names(path: Path) -> list[str]:
    """The names of a list in UTF-8, one a line; empty lines are left out. Raises ValueError if there is no such file, no name in
    it, or another encoding."""
    return [name for _, name in _numbered_names(path)]


def _numbered_names(path: Path) -> list[tuple[int, str]]:
    """`read_names`, each with the number of its line."""
    if not path.is_file():
        raise ValueError(f"{path}: no such list")
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors of Windows put a mark before the first name
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: cannot be read as a list of names ({error}); save it in UTF-8") from error
    names = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not names:
        raise ValueError(f"{path}: the list is empty")
    return names


def read_stems(path: Path) -> list[str]:
    """The stems of a split's list, whose lines are "X", "/images/X.jpg", or "/images/X.jpg /labels/X.png"; X may hold blanks.

    Raises ValueError as `read_names` does, where the two files of a line have different stems, and where two lines have the same
    stem, which would count twice: none of the lists of the field has one.
    """
    lines: dict[str, int] = {}
    for number, line in _numbered_names(path):
        pair = _PAIR_OF_FILES.fullmatch(line)
        if pair is not None and Path(pair[2]).suffix.lower() not in IMAGE_SUFFIXES:
            pair = None
        files = pair.groups() if pair else (line,)
        stems = [matching_name(_stem(name) if pair or "/" in name else name) for name in files]
        if stems[0] != stems[-1]:
            raise ValueError(
                f"{path}: line {number} pairs {stems[0]!r} with {stems[-1]!r}, but images and labels are matched by stem: "
                "rename the files of one folder"
            )
        if stems[0] in lines:
            raise ValueError(
                f"{path}: lines {lines[stems[0]]} and {number} both name {stems[0]!r}, which would count twice; keep one of them"
            )
        lines[stems[0]] = number
    return list(lines)


def _stem(name: str) -> str:
    """The stem of a path that may come from Windows."""
    return Path(name.replace("\\", "/")).stem


def _check_list(path: Path, splits: Iterable[str]) -> Path:
    """``path``, a split's list. Raises ValueError that says what ``splits`` there are where it is not among them."""
    if not path.is_file():
        there = ", ".join(sorted(splits))
        raise ValueError(
            f"{path}: no such list; there are: {there}" if there else f"{path}: no such list, nor any other"
        )
    return path


def camvid(root: Path, split: str, coding: LabelCoding = PLAIN) -> SegmentationFolder:
    """CamVid in the 11-class split of the SegNet papers: ``images/SPLIT``, ``labels/SPLIT`` and ``SPLIT.txt`` in ``root``.

    split: "train" (367), "val" (101) or "test" (233), or whatever lists there are.
    """
    splits = (path.stem for path in root.glob("*.txt") if (root / "images" / path.stem).is_dir())
    names = read_stems(_check_list(root / f"{split}.txt", splits))
    return SegmentationFolder(root / "images" / split, root / "labels" / split, CAMVID_CLASSES, names, coding)


def voc2012(root: Path, split: str, coding: LabelCoding = PLAIN) -> SegmentationFolder:
    """Pascal VOC 2012 (``VOCdevkit/VOC2012``): ``JPEGImages``, and ``SegmentationClassAug`` where it is there, else
    ``SegmentationClass``; the split is ``ImageSets/Segmentation/SPLIT.txt``.

    split: "train" (1464), "val" (1449), "trainval" (2913), and with the annotations of Hariharan et al. (ICCV 2011) "train_aug"
    (10582) and "trainval_aug" (12031), whose lists come as names, or as lines "/JPEGImages/X.jpg /SegmentationClassAug/X.png".
    """
    lists = root / "ImageSets" / "Segmentation"
    names = read_stems(_check_list(lists / f"{split}.txt", (path.stem for path in lists.glob("*.txt"))))
    augmented = root / "SegmentationClassAug"
    labels = augmented if augmented.is_dir() else root / "SegmentationClass"
    return SegmentationFolder(root / "JPEGImages", labels, VOC_CLASSES, names, coding)


def folder(root: Path, split: str, coding: LabelCoding = PLAIN) -> SegmentationFolder:
    """Folders of one's own: images in ``images/SPLIT`` or ``images``, label images in ``labels/SPLIT`` or ``labels``, names
    of the classes in ``classes.txt``, one a line; ``SPLIT.txt``, where it is there, says which and in what order.

    Where there are no splits at all, "all" or "train" takes every image.
    """
    images, labels = (
        root / kind / split if (root / kind / split).is_dir() else root / kind for kind in ("images", "labels")
    )
    chosen, classes = root / f"{split}.txt", read_names(root / "classes.txt")
    if chosen.is_file():
        return SegmentationFolder(images, labels, classes, read_stems(chosen), coding)
    if images.name != split:
        splits = _folder_splits(root)
        if splits or split not in WHOLE:
            remedy = f"there are: {', '.join(splits)}" if splits else (
                f"there are no splits: {' or '.join(WHOLE)} takes every image, --val-fraction 0.2 holds some back, and "
                "train --val-split '' validates on none"
            )  # fmt: skip
            raise ValueError(f"{root}: no split {split!r}, neither {root / 'images' / split} nor {chosen}; {remedy}")
    return SegmentationFolder(images, labels, classes, coding=coding)


def _folder_splits(root: Path) -> list[str]:
    """The splits of `folder`: folders in ``images`` with images, and lists whose first line names one."""
    images = root / "images"
    inside = sorted(path for path in images.glob("*") if path.is_dir() and not path.name.startswith("."))
    found = {path.name: files_by_stem(path, IMAGE_SUFFIXES) for path in inside}
    own = files_by_stem(images, IMAGE_SUFFIXES) if images.is_dir() else {}
    splits = {name for name, files in found.items() if files}
    for path in set(root.glob("*.txt")) - {root / "classes.txt"}:
        try:
            first = read_stems(path)[0]
        except ValueError:
            continue
        if first in own or first in found.get(path.stem, ()):
            splits.add(path.stem)
    return sorted(splits)


DATASETS: dict[str, Callable[[Path, str, LabelCoding], SegmentationFolder]] = {
    "camvid": camvid,
    "voc": voc2012,
    "folder": folder,
}


def open_dataset(kind: str, root: Path, split: str, coding: LabelCoding = PLAIN) -> SegmentationFolder:
    """The data set at ``root``. kind: "camvid", "voc" or "folder", see `camvid`, `voc2012` and `folder`. split: "train", ...
    coding: how the values of its label images become class ids.

    Raises ValueError that names the file or folder which is missing, or the list which is empty, and the splits there are where
    this is none.
    """
    if kind not in DATASETS:
        raise ValueError(f"data must be one of {', '.join(DATASETS)}; got {kind!r}")
    return DATASETS[kind](root, split, coding)
