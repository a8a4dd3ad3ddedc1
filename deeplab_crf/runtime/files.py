"""Files that are whole or absent, and folders matched by stem."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: files are written all the same, and leftovers of killed processes stay
    fcntl = None  # type: ignore[assignment]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
LABEL_SUFFIXES = frozenset({".bmp", ".pgm", ".png", ".tif", ".tiff"})
ARRAY_SUFFIXES = frozenset({".npy", ".npz"})

_PARTIAL = re.compile(r"\..*\.([0-9a-f]{8})-\d+-[0-9a-f]{8}\.partial", re.DOTALL)
_DAY = 24 * 60 * 60.0

WriteObserver = Callable[[Path, str], None]
_observer: ContextVar[WriteObserver | None] = ContextVar("observer of atomic_write", default=None)
_tidied: set[Path] = set()  # folders that this process has removed leftovers from


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that becomes ``path`` when the block ends, and leaves nothing behind when it raises.

    The bytes go to a hidden file in the same folder, so the last step is a rename within one file system: readers see
    the old file or the new one, never a part. Folders that are missing are made. An OSError names the file, which that of a full
    disk does not by itself. The first call for a folder removes what killed processes left there, see `remove_leftovers`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent.absolute()
    if folder not in _tidied:
        _tidied.add(folder)
        remove_leftovers(folder)
    try:
        partial, lock = _create_partial(path)
    except OSError as error:  # name the file that is wanted, not the hidden one
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        with open(partial, "wb") as stream:
            yield stream
        observer = _observer.get()
        if observer is not None:
            observer(path, digest_file(partial))
        os.replace(partial, path)
    except BaseException as error:  # KeyboardInterrupt too: a half-written file helps nobody
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        os.close(lock)


def _create_partial(path: Path) -> tuple[Path, int]:
    """A new hidden file beside ``path``, and a descriptor that holds its lock for as long as it is open: a file without a lock is
    one whose process has died."""
    while True:
        unique = f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
        partial = path.with_name(f".{path.name[:40]}.{unique}.partial")  # the longest names leave no room for more
        lock = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:
            return partial, lock
        os.close(lock)  # another process took it for a leftover before it was locked


def _machine() -> str:
    return f"{zlib.crc32(os.uname().nodename.encode()) if hasattr(os, 'uname') else 0:08x}"


def remove_leftovers(folder: Path) -> None:
    """Remove the half-written files of `atomic_write` in ``folder`` whose processes were killed.

    A living process holds a lock on its file, in whatever container it runs. Locks may not reach other machines on a shared file
    system, so files of other machines are removed when nothing was written to them for a day.
    """
    if fcntl is None:
        return
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _PARTIAL.fullmatch(entry.name)
            if match is None:
                continue
            with suppress(OSError), open(entry.path, "r+b") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if match[1] == _machine() or time.time() - os.fstat(stream.fileno()).st_mtime > _DAY:
                    os.unlink(entry.path)


@contextmanager
def observed_writes(observer: WriteObserver) -> Iterator[None]:
    """Within the block, call ``observer`` with the path and the digest of each file that `atomic_write` has written in this thread,
    just before the file appears."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def digest_file(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits. Raises OSError where it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest_files(paths: Iterable[Path]) -> str:
    """One digest of the contents of several files in their order. Raises OSError where one cannot be read."""
    return hashlib.sha256("".join(map(digest_file, paths)).encode()).hexdigest()


def error_text(error: BaseException) -> str:
    """The text of an error for users: of an OSError that names a file the file first, and without the number of the error."""
    if isinstance(error, OSError) and error.filename is not None and error.filename2 is None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


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


def score_files(folder: Path) -> dict[str, Path]:
    """The arrays of ``folder``, or its label images where it holds no arrays, as `files_by_stem` gives them."""
    return files_by_stem(folder, ARRAY_SUFFIXES) or files_by_stem(folder, LABEL_SUFFIXES)
