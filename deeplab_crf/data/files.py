"""Files that are whole or absent, and folders matched by stem."""

from __future__ import annotations

import os
import secrets
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
LABEL_SUFFIXES = frozenset({".bmp", ".pgm", ".png", ".tif", ".tiff"})
ARRAY_SUFFIXES = frozenset({".npy", ".npz"})


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that becomes ``path`` when the block ends, and leaves nothing behind when it raises.

    The bytes go to a hidden file in the same folder, so the last step is a rename within one file system: readers see
    the old file or the new one, never a part. Folders that are missing are made. An OSError names the file, which that of a full
    disk does not by itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "xb") as stream:
            yield stream
        os.replace(partial, path)
    except BaseException as error:  # KeyboardInterrupt too: a half-written file helps nobody
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def check_writable(folder: Path) -> None:
    """Raises ValueError where ``folder`` cannot be made or written into, as far as that shows beforehand."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "may not be written to" if there.is_dir() else "is no folder"
        raise ValueError(f"{folder}: results cannot be written there: {there} {why}")


def matching_name(name: str) -> str:
    """The form in which names are compared: macOS writes accents as characters of their own (NFD), other systems do not (NFC)."""
    return unicodedata.normalize("NFC", name)


def files_by_stem(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """The files of ``folder`` (not of folders in it) with one of ``suffixes`` (lower case, with dot), sorted, by the
    `matching_name` of their stem.

    Hidden files are left out. Links to nothing are not: whoever reads them says that a file is missing, as it is where a data set's
    files were not fetched. Raises ValueError where two files share a stem: which one is meant cannot be known.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if not path.is_file() and not (path.is_symlink() and not path.exists()):
            continue
        stem = matching_name(path.stem)
        if stem in found:
            raise ValueError(
                f"{folder} holds {found[stem].name} and {path.name}: files are matched by stem; keep one of them"
            )
        found[stem] = path
    return found
