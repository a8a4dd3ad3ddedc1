"""deeplab_crf.runtime.files: half-written files of killed processes, and what was written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from deeplab_crf.runtime import files
from deeplab_crf.runtime.files import (
    atomic_write,
    digest_file,
    digest_files,
    error_text,
    observed_writes,
    remove_leftovers,
)

fcntl = pytest.importorskip("fcntl", reason="leftovers are told by file locks, which need fcntl")

WRITER = """
import sys
from pathlib import Path
from deeplab_crf.runtime.files import atomic_write
with atomic_write(Path(sys.argv[1])) as stream:
    stream.write(b"half")
    stream.flush()
    print("writing", flush=True)
    sys.stdin.readline()
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def start_writer(path: Path) -> subprocess.Popen[str]:
    """A process that has begun to write ``path``, and goes on when it is sent a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    with start_writer(tmp_path / "dead.png") as dead, start_writer(tmp_path / "alive.png") as alive:
        dead.kill()
        dead.wait()
        assert len(names(tmp_path)) == 2
        (tmp_path / ".mine.partial").write_text("not one of ours")
        with atomic_write(tmp_path / "new.png") as stream:  # the first write of this process into the folder
            stream.write(b"whole")
        left = names(tmp_path)
        assert [name for name in left if name.startswith(".alive.png.")]
        assert not [name for name in left if name.startswith(".dead.png.")]
        alive.communicate("\n")
        assert alive.returncode == 0
    assert names(tmp_path) == [".mine.partial", "alive.png", "new.png"]


def test_leftovers_of_other_machines_stay_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh, old = (tmp_path / f".{name}.png.01234567-8-89abcdef.partial" for name in ("fresh", "old"))
    for path in (fresh, old):
        path.write_bytes(b"half")
    yesterday = time.time() - 2 * 24 * 60 * 60
    os.utime(old, (yesterday, yesterday))
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [fresh.name]
    monkeypatch.setattr(files, "_machine", lambda: "01234567")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_a_file_that_was_taken_for_a_leftover_before_its_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, done = fcntl.flock, []

    def tidy_first(descriptor: int, operation: int) -> None:
        if not done:
            done.append(True)
            remove_leftovers(tmp_path)
        flock(descriptor, operation)

    monkeypatch.setattr(files.fcntl, "flock", tidy_first)
    with atomic_write(tmp_path / "a.png") as stream:
        stream.write(b"whole")
    assert (tmp_path / "a.png").read_bytes() == b"whole"
    assert names(tmp_path) == ["a.png"]


def test_the_longest_names_can_be_written(tmp_path: Path) -> None:
    name = "ü" * 125 + ".png"  # 254 bytes of the 255 that file systems take
    with atomic_write(tmp_path / name):
        pass
    assert names(tmp_path) == [name]


def test_writes_are_observed_in_their_own_thread_and_before_the_file_appears(tmp_path: Path) -> None:
    seen: list[tuple[str, str, bool]] = []

    def write(name: str) -> None:
        with atomic_write(tmp_path / name) as stream:
            stream.write(name.encode())

    with observed_writes(lambda path, digest: seen.append((path.name, digest, path.exists()))):
        write("a")
        thread = threading.Thread(target=write, args=("b",))
        thread.start()
        thread.join()
    write("c")
    assert seen == [("a", digest_file(tmp_path / "a"), False)]
    assert names(tmp_path) == ["a", "b", "c"]


def test_digests_tell_contents_and_their_order(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    for path, content in ((a, b"1"), (b, b"2"), (c, b"1")):
        path.write_bytes(content)
    assert digest_files([a, b]) == digest_files([c, b]) != digest_files([b, a])


def test_an_error_names_the_file_that_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the hidden one, and without the number of the error."""

    def refuse(path: object, *_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="Read-only file system") as caught, atomic_write(tmp_path / "a.png"):
        pass
    assert error_text(caught.value) == f"{tmp_path / 'a.png'}: Read-only file system"
    assert error_text(ValueError("a.png: is bad")) == "a.png: is bad"
    assert error_text(MemoryError()) == "MemoryError"
