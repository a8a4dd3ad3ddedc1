"""What a file is that came in place of weights, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Sequence

HEAD = 512  # bytes of a file that are looked at

_PAGE = "it is a web page, not weights: open its address in a browser and save the file itself"
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "it is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository"),
    (b"\x1f\x8b", "it is compressed with gzip: unpack it first (gunzip, or tar xf for a .tar.gz)"),
    (b"BZh", "it is compressed with bzip2: unpack it first (bunzip2)"),
    (b"\xfd7zXZ\x00", "it is compressed with xz: unpack it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd: unpack it first (unzstd)"),
    (b"7z\xbc\xaf\x27\x1c", "it is a 7z archive: unpack it first"),
    (b"Rar!", "it is a RAR archive: unpack it first"),
    (b"\x93NUMPY", "it is one NumPy array (.npy), which has no names of layers"),
    (b"%PDF", "it is a PDF document, not weights"),
)
_JSON = re.compile(rb"\s*[{\[]\s*[\"{\[\]}0-9-]")
_PROTOTXT = re.compile(rb"\s*(?:#[^\n]*\s+)*(?:name\s*:|layers?\s*\{|input\s*:)")


def kind_of_file(head: bytes) -> str | None:
    """Returns what a file is that starts with ``head`` (`HEAD` bytes) and what to do, or None where it may be weights."""
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    if head[257:262] == b"ustar":
        return "it is a tar archive: unpack it first (tar xf)"
    if any(byte < 32 and byte not in b"\t\r\n" for byte in head):
        return None  # binary, as all weights are
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:14].lower().startswith((b"<!doctype html", b"<html")):
        return _PAGE
    if text.startswith(b"<"):
        return "it is an XML text, not weights"
    if _JSON.match(head):
        return "it is a JSON text, not weights: an index of several files names those that hold the tensors"
    if _PROTOTXT.match(head):
        return "it is a prototxt, which describes layers and holds no weights: give the .caffemodel"
    return None


def kind_of_archive(names: Sequence[str]) -> str | None:
    """Returns what a zip archive with entries ``names`` is and what to do, or None where it may be a torch checkpoint."""
    if any(name.endswith("constants.pkl") for name in names) and any("/code/" in name for name in names):
        return (
            "it is a TorchScript module, which is a program; save its tensors alone: "
            "torch.save(torch.jit.load(PATH, map_location='cpu').state_dict(), NEW)"
        )
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "it is a NumPy archive (.npz), not weights of a known layout"
    if "model.weights.h5" in names:
        return "it is a .keras archive: unpack it first, and give its model.weights.h5"
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"it is a zip archive without a torch checkpoint (it holds {shown or 'nothing'}): unpack it first"
