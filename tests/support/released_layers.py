"""Layer tables of the authors' networks, read from real prototxts; each file in models/names/released_*.txt names its source."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

NAMES = Path(__file__).parents[1] / "models" / "names"
# Each table and the variant whose layers it lists.
TABLES = {
    "released_v1_largefov": "v1-vgg16-largefov",
    "released_v1_msc_largefov": "v1-vgg16-msc-largefov",
    "released_v2_vgg16_aspp": "v2-vgg16-aspp-l",
    "released_v2_resnet101_aspp": "v2-resnet101-aspp",
}
_SCALE = re.compile(r"_res(?:05|075)(?=_c\d$|$)")


class ReleasedLayer(NamedTuple):
    """name, type and shapes of the blobs as in the .caffemodel; rates: learning-rate factor of each blob."""

    name: str
    kind: str
    shapes: tuple[tuple[int, ...], ...]
    rates: tuple[float, ...]


def released_layers(table: str) -> list[ReleasedLayer]:
    """Returns every layer of ``table`` that has numbers, copies at other scales included."""
    layers = []
    for line in (NAMES / f"{table}.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        name, kind, shapes, rates = line.split()
        sizes = tuple(tuple(int(size) for size in shape.split("x")) for shape in shapes.split(","))
        layers.append(ReleasedLayer(name, kind, sizes, tuple(float(rate) for rate in rates.split(","))))
    return layers


def original_of(name: str) -> str:
    """Returns the name of the layer that ``name`` is a copy of, or ``name`` itself."""
    return _SCALE.sub("", name)


def copied(name: str, scale: str) -> str:
    """Returns the name of the copy of a layer at ``scale`` ("res05" or "res075")."""
    return re.sub(r"(_c\d)?$", lambda end: f"_{scale}{end[0]}", name, count=1)
