"""What a trained network has to say beside its numbers: plain data, no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

KEY = "usage"  # in the metadata of a weights file


@dataclass(frozen=True)
class Usage:
    """How weights are meant to be used; a file of ours carries it.

    classes: names of the class ids 0, 1, ...; empty where nobody said. longer_side: pixels of the longer side of the images that
    it was trained on, to which `SegmentationPipeline` resizes; None: images as they are. crf: the name of a published preset;
    None: the variant's.
    """

    classes: tuple[str, ...] = ()
    longer_side: int | None = None
    crf: str | None = None

    def as_metadata(self) -> dict[str, str]:
        """For the file."""
        return {KEY: json.dumps(asdict(self))}


def read_usage(metadata: Mapping[str, str], num_classes: int) -> Usage:
    """What a file's metadata say; nothing where they say nothing. Raises ValueError where they say nonsense."""
    if KEY not in metadata:
        return Usage()
    try:
        found = json.loads(metadata[KEY])
        usage = Usage(tuple(found["classes"]), found["longer_side"], found["crf"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"its metadata {KEY!r} cannot be read: {metadata[KEY][:80]!r}") from error
    names = [name for name in usage.classes if isinstance(name, str)]
    whole = isinstance(usage.longer_side, int) and not isinstance(usage.longer_side, bool) and usage.longer_side > 0
    if len(names) not in (0, num_classes) or len(names) != len(usage.classes):
        raise ValueError(f"its metadata {KEY!r} must name its {num_classes} classes; got {usage.classes!r}")
    if not (usage.longer_side is None or whole) or not (usage.crf is None or isinstance(usage.crf, str)):
        raise ValueError(f"its metadata {KEY!r} must hold pixels and a preset's name; got {metadata[KEY][:80]!r}")
    return usage
