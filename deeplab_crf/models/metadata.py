"""What a trained network has to say beside its numbers: plain data, no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from deeplab_crf.core.presets import PRESETS

KEY = "usage"  # in the metadata of a weights file
# What the first convolution of a weights file may have been trained on; the first is ours.
CONVENTIONS = ("bgr-255", "rgb-255", "rgb-1")
LONGEST_SIDE = 1 << 14  # pixels: a file may not ask for images that fill the memory


@dataclass(frozen=True)
class Usage:
    """How weights are meant to be used; a file of ours carries it.

    classes: names of the class ids 0, 1, ...; empty where nobody said. longer_side: pixels of the longer side of the images that
    it was trained on, to which `SegmentationPipeline` resizes; None: images as they are. crf: the name of a published preset;
    None: the variant's. align_corners: how images and scores are resized; True: corners on corners, as Caffe's Interp; False:
    between the centres of pixels, as kazuto1011/deeplab-pytorch trains and runs, on images that are not padded.
    """

    classes: tuple[str, ...] = ()
    longer_side: int | None = None
    crf: str | None = None
    align_corners: bool = True

    def as_metadata(self) -> dict[str, str]:
        """For the file."""
        return {KEY: json.dumps(asdict(self))}


def read_usage(metadata: Mapping[str, str], num_classes: int) -> Usage:
    """What a file's metadata say; nothing where they say nothing. Raises ValueError where they say nonsense."""
    if KEY not in metadata:
        return Usage()
    text = metadata[KEY]
    try:
        found = json.loads(text)
        usage = Usage(tuple(found["classes"]), found["longer_side"], found["crf"], found.get("align_corners", True))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"its metadata {KEY!r} cannot be read: {text[:80]!r}") from error
    names = [name for name in usage.classes if isinstance(name, str)]
    if len(names) not in (0, num_classes) or len(names) != len(usage.classes):
        raise ValueError(f"its metadata {KEY!r} must name its {num_classes} classes; got {usage.classes!r:.200}")
    side = usage.longer_side
    whole = isinstance(side, int) and not isinstance(side, bool) and 0 < side <= LONGEST_SIDE
    if not (side is None or whole) or not (usage.crf is None or isinstance(usage.crf, str)):
        raise ValueError(f"its metadata {KEY!r} must hold pixels and a preset's name; got {text[:80]!r}")
    if usage.crf is not None and usage.crf not in PRESETS:  # a path among them would be opened
        raise ValueError(
            f"its metadata {KEY!r} must name a published preset ({', '.join(PRESETS)}) as crf; got {usage.crf[:80]!r}"
        )
    if not isinstance(usage.align_corners, bool):
        raise ValueError(f"its metadata {KEY!r} must hold true or false as align_corners; got {text[:80]!r}")
    return usage
