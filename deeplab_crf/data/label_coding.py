"""How the values of label files become class ids: colours looked up in a table, and ids replaced by others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplab_crf.data.label_colors import LARGEST_ID, ColorTable, read_colors

_MOST_REPLACED = LARGEST_ID + 1
_SIDE = r"(-?\d{1,10})(?:\.\.(-?\d{1,10}))?"
_PAIR = re.compile(rf"\s*{_SIDE}\s*=\s*{_SIDE}\s*")


@dataclass(frozen=True)
class LabelCoding:
    """How label files are read: first colours become ids, then ids are replaced, all at once.

    Args:
        colors: The table of label images that are coded by colour. None: their values are ids.
        replaced: New ids, in 0..65535, by old id, such as {255: 1} for masks of 0 and 255. Other ids stay as they are.

    Raises:
        ValueError: An id is no whole number, or a new one is out of range.
    """

    colors: ColorTable | None = None
    replaced: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for old, new in self.replaced.items():
            if type(old) is not int or type(new) is not int or not 0 <= new <= LARGEST_ID:
                raise ValueError(
                    f"map_labels must replace whole numbers by ids in 0..{LARGEST_ID}; got {old!r} = {new!r}"
                )

    def apply(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        """Return ``ids`` with those of ``replaced`` changed, as int64."""
        wide = ids.astype(np.int64)
        if not self.replaced:
            return wide
        old = np.array(sorted(self.replaced), dtype=np.int64)
        new = np.array([self.replaced[int(each)] for each in old], dtype=np.int64)
        places = np.searchsorted(old, wide).clip(max=len(old) - 1)
        return np.where(old[places] == wide, new[places], wide)

    def __str__(self) -> str:
        """Describe the coding for reports; empty where values are ids."""
        table = [] if self.colors is None else [f"colours of {self.colors}"]
        return ", ".join([*table, *(f"{old}={new}" for old, new in self.replaced.items())])

    @property
    def palette(self) -> tuple[int, ...] | None:
        """The colours of the ids in `LabelImage`'s layout; None without a table."""
        return None if self.colors is None else self.colors.palette(dict(self.replaced))


def make_coding(map_labels: str | Mapping[int, int] = "", label_colors: str | Path = "") -> LabelCoding:
    """Return the coding that the options of the commands describe.

    Args:
        map_labels: See `parse_label_map`; or the mapping itself; empty: nothing is replaced.
        label_colors: See `read_colors`; empty: label images hold ids.

    Raises:
        ValueError: As `parse_label_map` and `read_colors` do.
    """
    replaced = parse_label_map(map_labels) if isinstance(map_labels, str) else map_labels
    return LabelCoding(read_colors(label_colors) if str(label_colors) else None, replaced)


def parse_label_map(text: str) -> dict[int, int]:
    """Return new ids by old id from "255=1", "0=255,1=0,2=1", or with ranges "0=255,1..150=0..149" and "20..33=255".

    Raises ValueError for other texts, ranges of different lengths, and an id that is replaced twice.
    """
    replaced: dict[int, int] = {}
    for part in text.split(",") if text.strip() else ():
        match = _PAIR.fullmatch(part)
        if match is None:
            raise ValueError(
                f"map_labels must be OLD=NEW pairs with commas, such as 255=1 or 0=255,1..20=0..19; got {part.strip()!r}"
            )
        first, last, new, last_new = (None if group is None else int(group) for group in match.groups())
        assert first is not None
        assert new is not None
        count = 1 if last is None else last - first + 1
        if not 1 <= count <= _MOST_REPLACED or (last_new is not None and last_new - new + 1 != count):
            raise ValueError(f"map_labels must replace ranges by ranges of the same length, or by one id; got {part!r}")
        for i in range(count):
            if first + i in replaced:
                raise ValueError(f"map_labels must replace each id once; got {first + i} twice")
            replaced[first + i] = new if last_new is None else new + i
    return replaced
