"""Images on disk for tests of commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deeplab_crf.data.results import RECORDS


def read(path: Path) -> NDArray[Any]:
    """Return the pixels of an image file, palette indices as they are."""
    with Image.open(path) as image:
        return np.array(image)


def write_turned(path: Path, array: NDArray[Any], orientation: int) -> None:
    """Write an image with an EXIF orientation."""
    image = Image.fromarray(array)
    exif = image.getexif()
    exif[274] = orientation
    image.save(path, exif=exif)


def files(folder: Path) -> list[str]:
    """Return the paths of all files below a folder, except the record of their inputs."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != RECORDS)
    return sorted(str(path.relative_to(folder)) for path in found)
