"""Tables of colours for label images that paint classes instead of storing their ids."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deeplab_crf.data.classes import CAMVID_PALETTE, VOC_CLASSES, voc_palette

Colour: TypeAlias = tuple[int, int, int]
VOID = 255
LARGEST_ID = 65535  # of a 16-bit label image
_LARGEST_FILE = 2**20

# The 32 colours of CamVid's label_colors.txt, grouped into the 11 classes of the SegNet papers, in the order of CAMVID_CLASSES.
_CAMVID: tuple[tuple[Colour, ...], ...] = (
    ((128, 128, 128),),
    ((128, 0, 0), (192, 0, 128), (0, 128, 64), (64, 0, 64), (64, 192, 0)),  # building, archway, bridge, tunnel, wall
    ((192, 192, 128), (0, 0, 64)),  # column or pole, traffic cone
    ((128, 64, 128), (128, 0, 192), (192, 0, 64)),  # road, lane markings
    ((0, 0, 192), (64, 192, 128), (128, 128, 192)),  # sidewalk, parking block, road shoulder
    ((128, 128, 0), (192, 192, 0)),  # tree, other vegetation
    ((192, 128, 128), (128, 128, 64), (0, 64, 64)),  # sign, text, traffic light
    ((64, 64, 128),),
    ((64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64)),  # car, SUV, truck, train, other
    ((64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)),  # pedestrian, child, cart, animal
    ((0, 128, 192), (192, 0, 192)),  # bicyclist, motorcycle
)

# Cityscapes by train id, from its labels.py; then the colours of what it does not evaluate.
_CITYSCAPES: tuple[Colour, ...] = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142),
    (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip
_CITYSCAPES_VOID: tuple[Colour, ...] = (
    (0, 0, 0), (111, 74, 0), (81, 0, 81), (250, 170, 160), (230, 150, 140), (180, 165, 180), (150, 100, 100),
    (150, 120, 90), (0, 0, 90), (0, 0, 110),
)  # fmt: skip


@dataclass(frozen=True)
class ColorTable:
    """The class id of each colour.

    Args:
        name: What messages call the table: "voc", or the path of its file.
        entries: Pairs of a class id in 0..65535 and its colour (R, G, B) in 0..255. Several colours may share an id; the
            first one is the colour that results are painted in.

    Raises:
        ValueError: There is no entry, a number is out of range, or one colour has two ids.
    """

    name: str
    entries: tuple[tuple[int, Colour], ...]

    def __post_init__(self) -> None:
        if not self.entries:
            raise ValueError(f"{self.name}: the table of label colours is empty")
        known: dict[Colour, int] = {}
        for index, colour in self.entries:
            if not 0 <= index <= LARGEST_ID or not all(0 <= value <= 255 for value in colour):
                raise ValueError(
                    f"{self.name}: ids must be in 0..{LARGEST_ID} and colours in 0..255; got id {index} with {colour}"
                )
            if known.setdefault(colour, index) != index:
                raise ValueError(f"{self.name}: colour {colour} stands for both {known[colour]} and {index}")

    def __str__(self) -> str:
        """Return the name, and what the file says in eight digits where it is a file, for reports and comparisons."""
        if self.name in _TABLES:
            return self.name
        return f"{self.name} ({hashlib.sha256(repr(self.entries).encode()).hexdigest()[:8]})"

    def ids(self, pixels: NDArray[np.uint8], path: Path) -> NDArray[np.int64]:
        """Return the class ids ``(H, W)`` of the colours ``pixels`` ``(H, W, 3)``.

        Raises ValueError that names ``path``, a colour that the table lacks, and the pixel where it was found.
        """
        known, index = _codes(np.array([colour for _, colour in self.entries])), [each for each, _ in self.entries]
        order = np.argsort(known)
        codes = _codes(pixels)
        places = np.searchsorted(known[order], codes).clip(max=len(order) - 1)
        unknown = known[order][places] != codes
        if unknown.any():
            row, column = (int(i) for i in np.argwhere(unknown)[0])
            colour = tuple(int(value) for value in pixels[row, column])
            raise ValueError(
                f"{path}: colour {colour} at row {row}, column {column} is not in the label colours {self.name} "
                f"({len(order)} colours); {100 * float(unknown.mean()):.3g} % of the pixels have unknown colours. Add them "
                "to the table, or save the image without smoothing and lossy compression"
            )
        ids: NDArray[np.int64] = np.array(index, dtype=np.int64)[order][places]
        return ids

    def palette(self, replaced: dict[int, int]) -> tuple[int, ...] | None:
        """Return the colours of ids 0..255 as R, G, B, R, G, B, ...; None where an id is above 255.

        replaced: ids that become other ids after the look-up.
        """
        colours: dict[int, Colour] = {}
        for index, colour in self.entries:
            colours.setdefault(replaced.get(index, index), colour)
        if max(colours) > 255:
            return None
        values = list(voc_palette(max(colours) + 1))
        for index, colour in colours.items():
            values[3 * index : 3 * index + 3] = colour
        return tuple(values)


def _codes(colours: NDArray[Any]) -> NDArray[np.int64]:
    """One number for each colour in the last axis."""
    channels = colours.astype(np.int64)
    return (channels[..., 0] << 16) | (channels[..., 1] << 8) | channels[..., 2]


def _voc() -> tuple[tuple[int, Colour], ...]:
    return (*enumerate(_triples(voc_palette(len(VOC_CLASSES)))), (VOID, (224, 224, 192)))


def _camvid() -> tuple[tuple[int, Colour], ...]:
    """The colours that the papers show come first: they differ from label_colors.txt for the pavement."""
    shown = tuple(enumerate(_triples(CAMVID_PALETTE)))
    others = tuple((index, colour) for index, group in enumerate(_CAMVID) for colour in group)
    return (*shown, *others, (VOID, (0, 0, 0)))


def _cityscapes() -> tuple[tuple[int, Colour], ...]:
    return (*enumerate(_CITYSCAPES), *((VOID, colour) for colour in _CITYSCAPES_VOID))


def _triples(palette: Sequence[int]) -> list[Colour]:
    return [(palette[i], palette[i + 1], palette[i + 2]) for i in range(0, len(palette), 3)]


_TABLES = {"voc": _voc, "camvid": _camvid, "cityscapes": _cityscapes}
COLOUR_TABLES = tuple(_TABLES)


def read_colors(name: str | Path) -> ColorTable:
    """Return the table of colours that ``name`` stands for.

    Args:
        name: "voc", "camvid" or "cityscapes", or a file in UTF-8, one class a line, ``#`` before comments, numbers
            separated by blanks or commas: "r g b name" (CamVid's label_colors.txt), "index name r g b", "index r g b name",
            "name r g b" (a header "name,r,g,b" is allowed), "name:r,g,b::" (CVAT's labelmap.txt). Or JSON: {"name": [r,
            g, b]}, or a list of {"id": 3, "name": "car", "color": [r, g, b]}. Without an index, ids count from 0.

    Raises:
        ValueError: The file is missing or in another form, or `ColorTable` refuses its numbers.
    """
    if str(name) in _TABLES:
        return ColorTable(str(name), _TABLES[str(name)]())
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"{path}: no such table of label colours; give a file, or one of {', '.join(COLOUR_TABLES)}")
    if path.stat().st_size > _LARGEST_FILE:
        raise ValueError(f"{path}: a table of label colours has at most {_LARGEST_FILE} bytes")
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = _from_json(json.loads(text)) if text.lstrip()[:1] in ("{", "[") else _from_lines(text)
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as a table of label colours ({error})") from error
    return ColorTable(
        str(path), tuple((i if index is None else index, colour) for i, (index, colour) in enumerate(rows))
    )


Row: TypeAlias = tuple[int | None, Colour]


def _from_lines(text: str) -> list[Row]:
    """Each line's index (None where it has none) and colour. All lines must have the same form."""
    rows: list[Row] = []
    forms: set[str] = set()
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    for line in filter(None, lines):
        form, row = _from_words(line)
        if row is None:
            if rows:
                raise ValueError(f"no colour in {line!r}")
            continue  # the header
        forms.add(form)
        rows.append(row)
        if len(forms) > 1:
            raise ValueError(f"{line!r} has another form than the lines before it")
    return rows


def _from_words(line: str) -> tuple[str, Row | None]:
    """The form of a line, "n" for each number and "x" for the name, and what it says; None for a header."""
    name, colon, rest = line.partition(":")
    if colon:  # CVAT: label:r,g,b:parts:actions
        line = f"{name.replace(',', ' ')},{rest.partition(':')[0]}"
        words = next(csv.reader([line], skipinitialspace=True))
    else:
        words = next(csv.reader([line], skipinitialspace=True)) if "," in line else line.split()
    words = [word.strip() for word in words if word.strip()]
    numbers = [int(word) if word.isdecimal() and len(word) < 6 else None for word in words]
    form = ""
    for number in numbers:
        form += "n" if number is not None else "x" if not form.endswith("x") else ""
    given = [number for number in numbers if number is not None]
    if not given:
        return form, None
    if form in ("nnnx", "xnnn", "nnn"):
        return form, (None, (given[0], given[1], given[2]))
    if form in ("nnnnx", "nxnnn", "nnnn"):
        return form, (given[0], (given[1], given[2], given[3]))
    raise ValueError(
        f"{line!r} is none of: r g b name; index name r g b; index r g b name; name r g b; with whole numbers"
    )


def _from_json(data: Any) -> list[Row]:
    if isinstance(data, dict) and isinstance(data.get("labels"), list):
        data = data["labels"]
    pairs: Iterable[tuple[Any, Any]]
    if isinstance(data, dict):
        pairs = [(int(name) if name.isdecimal() else None, colour) for name, colour in data.items()]
    elif isinstance(data, list) and all(isinstance(each, dict) for each in data):
        pairs = [(each.get("id", each.get("index")), each.get("color", each.get("colour"))) for each in data]
    else:
        raise ValueError('JSON must be {"name": [r, g, b]} or a list of {"id": 3, "color": [r, g, b]}')
    rows: list[Row] = []
    for index, colour in pairs:
        whole = isinstance(colour, list) and len(colour) == 3 and all(type(value) is int for value in colour)
        if not whole or not (index is None or type(index) is int):
            raise ValueError(f"a colour must be [r, g, b] and an id a whole number; got {colour!r} with id {index!r}")
        rows.append((index, (colour[0], colour[1], colour[2])))
    if len({index is None for index, _ in rows}) > 1:
        raise ValueError("either every class has an id or none")
    return rows
