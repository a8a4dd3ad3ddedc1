"""The settings of a training, for the library, TOML files and the command line. Needs no torch."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from deeplab_crf.data.datasets import DATASETS
from deeplab_crf.data.label_coding import LabelCoding, make_coding
from deeplab_crf.data.label_colors import COLOUR_TABLES
from deeplab_crf.models.variants import VARIANTS, get_variant
from deeplab_crf.runtime.files import atomic_write

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

POLICIES = ("poly", "step")
CLASS_WEIGHTS = ("none", "balanced")
OPTIMIZERS = ("sgd", "adamw")
AMP = ("off", "bfloat16", "float16")


@dataclass(frozen=True)
class Kind:
    """The values that a setting may have.

    Args:
        type: str, int, float, bool, or tuple for a list of numbers.
        text: The help text.
        low: The smallest number allowed.
        high: The largest number allowed.
        choices: The texts allowed; empty: any.
    """

    type: type
    text: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        """The allowed values in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.type in (str, bool):
            return {str: "text", bool: "true or false"}[self.type]
        range_ = f">= {self.low:g}" if self.high == math.inf else f"in [{self.low:g}, {self.high:g}]"
        return {int: "a whole number ", float: "a number ", tuple: "a list of numbers "}[self.type] + range_

    def read(self, value: Any) -> Any:
        """Return ``value`` converted to this kind.

        Raises:
            ValueError: It is not of this kind.
        """
        if self.type in (float, tuple):
            many = self.type is tuple
            numbers = list(value) if many and isinstance(value, list | tuple) else [value]
            if not numbers or any(isinstance(each, bool) or not isinstance(each, int | float) for each in numbers):
                raise ValueError
            value = tuple(float(each) for each in numbers) if many else float(numbers[0])
        elif type(value) is not self.type:
            raise ValueError
        numbers = value if self.type is tuple else [value] if self.type in (int, float) else []
        if not all(self.low <= each <= self.high and math.isfinite(each) for each in numbers):
            raise ValueError
        if self.choices and value not in self.choices:
            raise ValueError
        return value


def _setting(kind: type, text: str, default: Any = MISSING, **limits: Any) -> Any:
    return field(default=default, metadata={"kind": Kind(kind, text, **limits)})


SMALLEST = 1e-12  # what is above zero


@dataclass(frozen=True)
class TrainSettings:
    """All settings of a training.

    With the same data, software and number of threads, they give the same weights. Defaults are
    V2's (section 4.1 of arXiv 1606.00915). docs/training-deeplab.md describes each.

    Raises:
        ValueError: A setting is not what it must be; the error names it.
    """

    model: str = _setting(str, f"The network: {', '.join(VARIANTS)}.")
    data: str = _setting(str, "The layout of the data set.", choices=tuple(DATASETS))
    root: str = _setting(str, "Its folder.")
    train_split: str = _setting(str, "Split to train on.", "train")
    map_labels: str = _setting(str, "Replace ids in label images: OLD=NEW,..., such as 0=255,1..20=0..19.", "")
    label_colors: str = _setting(
        str, f"Table of label images that are coded by colour: a file, {', '.join(COLOUR_TABLES)}.", ""
    )
    val_split: str = _setting(str, "Split to validate on; empty: none.", "val")
    val_fraction: float = _setting(
        float, "Validate on this share of the train split, held back from training, instead.", 0.0, low=0, high=0.9
    )
    val_seed: int = _setting(int, "Decides which images val_fraction holds back.", 0, low=0, high=2**32 - 1)
    init: str = _setting(str, "Weights to start from; empty: none.", "")
    new_classifier: bool = _setting(bool, "Omit the last layers of `init`, for other classes.", False)
    multi_scale: bool | None = _setting(bool, "Run at scales 1, 0.75 and 0.5. Default: as released.", None)
    iterations: int = _setting(int, "Number of steps.", 20000, low=1)
    batch: int = _setting(int, "Crops in each step, over all processes.", 10, low=1)
    accumulate: int = _setting(int, "Parts of a batch that a process computes one by one, to save memory.", 1, low=1)
    crop: int = _setting(int, "Side of the crops, in pixels.", 321, low=1)
    scales: tuple[float, ...] = _setting(
        tuple, "Random scales of images.", (0.5, 0.75, 1.0, 1.25, 1.5), low=0.1, high=10
    )
    mirror: bool = _setting(bool, "Mirror every other crop.", True)
    colour: float = _setting(
        float, "Largest random change of light, brightness, contrast and saturation.", 0.0, low=0, high=1
    )
    class_weights: str = _setting(str, "Whether rare classes have more weight.", "none", choices=CLASS_WEIGHTS)
    longer_side: int = _setting(int, "Longer side of images in validation and use; 0: not resized.", 0, low=0)
    optimizer: str = _setting(str, "The papers' SGD, or AdamW for short trainings.", "sgd", choices=OPTIMIZERS)
    learning_rate: float = _setting(float, "Learning rate of the backbone at the start.", 1e-3, low=SMALLEST)
    head_rate: float = _setting(
        float, "Learning rate of the layers after the backbone, in units of the backbone's.", 1.0, low=SMALLEST
    )
    warmup: int = _setting(int, "Iterations over which the learning rate rises from zero.", 0, low=0)
    policy: str = _setting(str, "How the learning rate falls.", "poly", choices=POLICIES)
    step: int = _setting(int, "Policy step: a tenth after each so many iterations.", 2000, low=1)
    momentum: float = _setting(float, "Momentum of SGD; the first beta of AdamW.", 0.9, low=0, high=1)
    weight_decay: float = _setting(float, "Weight decay; biases have none.", 5e-4, low=0)
    average: float = _setting(
        float,
        "Decay of the running mean of the weights that is validated and saved; 0: the weights.",
        0.0,
        low=0,
        high=1,
    )
    amp: str = _setting(str, "Precision of the convolutions.", "off", choices=AMP)
    device: str = _setting(str, "cpu, cuda, cuda:1; under torchrun cuda is each process's own.", "cpu")
    threads: int = _setting(int, "Threads of the training process; 0: as many as cores.", 0, low=0, high=1024)
    workers: int = _setting(int, "Processes that read data; 0: the training process does.", 2, low=0, high=1024)
    seed: int = _setting(int, "Seed of all random numbers.", 0, low=0, high=2**32 - 1)
    validate_every: int = _setting(int, "Iterations between validations; 0: only at the end.", 1000, low=0)
    checkpoint_every: int = _setting(int, "Iterations between checkpoints.", 500, low=1)
    tensorboard: bool = _setting(bool, "Log for TensorBoard too.", False)

    def __post_init__(self) -> None:
        for each in fields(self):
            value, kind = getattr(self, each.name), each.metadata["kind"]
            if value is None and each.default is None:
                continue
            try:
                object.__setattr__(self, each.name, kind.read(value))
            except ValueError:
                raise ValueError(f"{each.name} must be {kind.expected}; got {value!r}") from None
        get_variant(self.model)
        _ = self.coding
        if self.batch % self.accumulate:
            raise ValueError(f"batch must be a multiple of accumulate, {self.accumulate}; got {self.batch}")
        if self.amp == "float16" and not self.device.startswith("cuda"):
            raise ValueError(f"amp must be off or bfloat16 on {self.device}: float16 is for CUDA; got float16")
        if self.optimizer == "adamw" and self.momentum == 1:
            raise ValueError("momentum must be below 1 with optimizer adamw, whose first beta it is; got 1.0")
        if self.val_fraction and self.val_split not in ("val", ""):
            raise ValueError(
                f"val_split must be left out with val_fraction, which holds a part of {self.train_split} back in its place; got "
                f"{self.val_split!r}"
            )
        if self.val_seed and not self.val_fraction:
            raise ValueError(f"val_seed must be left out without val_fraction, whose choice it is; got {self.val_seed}")
        if self.new_classifier and not self.init:
            raise ValueError("new_classifier must be false without init, the weights it leaves a part of out; got True")

    @property
    def coding(self) -> LabelCoding:
        """How the values of label images become class ids."""
        return make_coding(self.map_labels, self.label_colors)


# Settings that may change on resuming: they decide device, speed and output, not the result.
FREE = frozenset(
    {"root", "val_split", "device", "threads", "workers", "validate_every", "checkpoint_every", "tensorboard"}
)


def make_settings(values: Mapping[str, Any]) -> TrainSettings:
    """Make settings from values by name.

    Raises:
        ValueError: A name is unknown, a required setting is missing, or a value is not allowed.
    """
    _check_names(values)
    missing = [each.name for each in fields(TrainSettings) if each.default is MISSING and each.name not in values]
    if missing:
        raise ValueError(f"{', '.join(missing)} must be given")
    return TrainSettings(**values)


def _check_names(values: Mapping[str, Any]) -> None:
    names = [each.name for each in fields(TrainSettings)]
    unknown = [name for name in values if name not in names]
    if unknown:
        raise ValueError(f"there is no setting called {', '.join(unknown)}; known: {', '.join(names)}")


def read_values(path: Path) -> dict[str, Any]:
    """Read settings from a TOML file, by name.

    Raises:
        ValueError: The file is not TOML, or a name is unknown.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors of Windows put a mark at the beginning
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as TOML ({error})") from error
    try:
        _check_names(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return values


def write_settings(settings: TrainSettings, path: Path) -> None:
    """Write settings as TOML, whole or not at all, for `read_values` and `make_settings`."""
    lines = [f"{name} = {_as_toml(value)}" for name, value in as_dict(settings).items()]
    with atomic_write(path) as stream:
        stream.write(("\n".join(lines) + "\n").encode())


def as_dict(settings: TrainSettings) -> dict[str, Any]:
    """Return every setting by name, except those that are None."""
    values = {each.name: getattr(settings, each.name) for each in fields(settings)}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items() if value is not None
    }


def _as_toml(value: Any) -> str:
    """Return a TOML value; texts, numbers, booleans and lists look as in JSON."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
