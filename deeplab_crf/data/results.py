"""What the results in a folder were made from, so that only those that are still true are skipped.

One file in the folder, `RECORDS`, has a JSON object a line: the digests of the inputs, of the settings and of each file written.
A line is appended in one piece when its result is whole, so several processes can write into one folder, and a line that is lost
or torn costs the work of one result, never a wrong one. See docs/files.md.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from deeplab_crf.runtime.files import digest_file, digest_files, observed_writes
from deeplab_crf.runtime.info import __version__

if TYPE_CHECKING:
    from deeplab_crf.data.datasets import SegmentationFolder

RECORDS = ".deeplab-crf.jsonl"


class Job(Protocol):
    """Files to write together, the most important one last, and the files that they are made from."""

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The files to read."""

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The files to write."""


@dataclass(frozen=True)
class FileJob:
    """A `Job` of the files given."""

    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]


@dataclass(frozen=True)
class _Record:
    """Digests of what a job read, of its settings, and of what it wrote, by path in the folder. Those of files that are not yet
    written are empty."""

    inputs: str
    settings: str
    outputs: dict[str, str]


class ResultFolder:
    """The results in a folder, and what they were made from.

    Args:
        folder: Where results go. It need not exist.
        settings: Everything but the inputs that changes the results, by name: plain data, dataclasses and arrays. The version of
            this package is added.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self._file = folder, folder / RECORDS
        text = json.dumps([__version__, _plain(settings)], sort_keys=True)
        self._settings = hashlib.sha256(text.encode()).hexdigest()
        self._records = _read_records(self._file)

    @property
    def is_new(self) -> bool:
        """True if no result is recorded."""
        return not self._records

    def is_current(self, job: Job) -> bool:
        """True if every output of ``job`` is the file that was made from the same inputs with the same settings."""
        names = [self._name(path) for path in job.outputs]
        records = [self._records[name] for name in names if name in self._records]
        if len(records) < len(names) or any(record.settings != self._settings for record in records):
            return False
        try:
            for record, name, path in zip(records, names, job.outputs, strict=True):
                if record.outputs[name] != digest_file(path):
                    return False
            return {digest_files(job.inputs)} == {record.inputs for record in records}
        except OSError:  # a file is missing, or cannot be read
            return False

    def outputs_with(self, path: Path) -> tuple[Path, ...]:
        """The outputs of the job that wrote ``path``, ``path`` among them; ``path`` alone where no record knows it."""
        record = self._records.get(self._name(path))
        return (path,) if record is None else tuple(self.folder / name for name in record.outputs)

    def check_known(self, jobs: Iterable[Job]) -> None:
        """Raises ValueError where an output exists that no record knows: it may be someone's own work."""
        there = [path for job in jobs for path in job.outputs if os.path.lexists(path)]
        unknown = [path for path in there if self._name(path) not in self._records]
        if unknown:  # another process may have begun in the meantime, and writes its record first
            self._records = _read_records(self._file)
            unknown = [path for path in unknown if self._name(path) not in self._records]
        if unknown:
            exists = "exists" if len(unknown) == 1 else f"and {len(unknown) - 1} more exist"
            raise ValueError(
                f"{unknown[0]} {exists} already, of unknown origin: no record in {self.folder} says what it was made from. "
                "Choose another folder, replace it with --overwrite, or keep it with --skip-existing"
            )

    @contextmanager
    def making(self, job: Job) -> Iterator[None]:
        """Within the block, `atomic_write` writes the outputs of ``job`` in this thread; at its end they are recorded.

        What the job wrote before from other inputs or with other settings, and does not write now, is removed, unless it was
        changed since.
        """
        try:
            inputs = digest_files(job.inputs)  # before they are read: a later change shows as one
        except OSError:
            inputs = ""  # whoever reads them says what is wrong
        before = self._records.get(self._name(job.outputs[-1]))
        written: dict[str, str] = {}

        def observe(path: Path, digest: str) -> None:
            names = (self._name(each) for each in (*job.outputs, path))
            unknown = {name: "" for name in names if name not in self._records}
            if unknown:  # so that they are known for our own if this process is killed before the end
                self._append(_Record(inputs, self._settings, unknown))
            written[self._name(path)] = digest

        with observed_writes(observe):
            yield
        record = _Record(inputs, self._settings, written)
        self._remove_outdated(before, record)
        if written:
            self._append(record)

    def _remove_outdated(self, old: _Record | None, new: _Record) -> None:
        if old is None or (old.inputs, old.settings) == (new.inputs, new.settings):
            return
        for name in old.outputs.keys() - new.outputs.keys():
            path = self.folder / name
            with suppress(OSError):
                if self._records.get(name) is old and digest_file(path) == old.outputs[name]:
                    path.unlink()

    def _append(self, record: _Record) -> None:
        data = json.dumps(asdict(record)).encode() + b"\n"
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            end = os.lseek(descriptor, 0, os.SEEK_END)
            if end and os.pread(descriptor, 1, end - 1) != b"\n":
                data = b"\n" + data  # behind a line that a killed process left torn
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._file))
        finally:
            os.close(descriptor)
        self._records.update(dict.fromkeys(record.outputs, record))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def score_jobs(dataset: SegmentationFolder, folder: Path) -> dict[str, FileJob]:
    """By the name of each image of a data set, the job that saves its scores in ``folder``."""
    return {item.name: FileJob((item.image,), (folder / f"{item.name}.npz",)) for item in dataset.items}


def check_same_settings(folder: Path, paths: Sequence[Path]) -> None:
    """Raises ValueError where the records in ``folder`` say that ``paths``, files in it, were made with different settings."""
    records = _read_records(folder / RECORDS)
    found = {path.name: records[path.name].settings for path in paths if path.name in records}
    first = next(iter(found), None)
    other = [name for name, settings in found.items() if first is not None and settings != found[first]]
    if other:
        raise ValueError(
            f"{folder}: {first} and {other[0]} were made with different weights or settings ({len(other)} of {len(paths)} differ "
            "from the first); make all of them anew"
        )


def _read_records(path: Path) -> dict[str, _Record]:
    """The newest record of each output. Lines that are no records are left out: their results are made anew."""
    records: dict[str, _Record] = {}
    try:
        lines = path.read_bytes().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    for line in lines:
        try:
            record = _Record(**json.loads(line))
            names = list(record.outputs)
            digests = [record.inputs, record.settings, *record.outputs.values()]
        except (ValueError, TypeError, AttributeError, RecursionError):
            continue
        if all(isinstance(digest, str) for digest in digests) and all(map(_stays_inside, names)):
            records.update(dict.fromkeys(names, record))
    return records


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _plain(value: Any) -> Any:
    """``value`` as JSON has it, with equal text for equal values."""
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__name__, {each.name: _plain(getattr(value, each.name)) for each in fields(value)}]
    if isinstance(value, Mapping):
        return sorted(([_plain(key), _plain(each)] for key, each in value.items()), key=repr)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"settings must be plain data, dataclasses and arrays; got {type(value).__name__}")
