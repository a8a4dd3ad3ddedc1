"""The state of a training on disk: a whole file or none, refused by any other training."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from deeplab_crf.data.datasets import SegmentationFolder
from deeplab_crf.models.deeplab import DeepLab
from deeplab_crf.runtime.files import atomic_write
from deeplab_crf.training.settings import FREE, TrainSettings, as_dict


@dataclass(frozen=True)
class Format:
    """The format of a command's checkpoint.

    Args:
        name: Stands in the file.
        command: The command that writes it.
        parts: The type of each part, by name.
    """

    name: str
    command: str
    parts: Mapping[str, type]


TRAINING = Format(
    "deeplab-crf training 1",
    "train",
    {"model": dict, "settings": dict, "iteration": int, "network": dict, "optimizer": dict, "scaler": dict},
)


@dataclass(frozen=True, eq=False)
class TrainingState:
    """What changes during a training.

    Everything random is a function of the seed, the iteration and the process (see samples.py and
    `train.seed_iteration`), so no generator's state belongs to it.

    Args:
        network: The network that is trained.
        optimizer: Its optimizer.
        scaler: The scaler of the loss.
        average: The running mean of the weights, if there is one.
        data: The digest of `describe_data`; it does not change.
    """

    network: DeepLab
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: AveragedModel | None = None
    data: str = ""

    @property
    def result(self) -> DeepLab:
        """The trained network: the average where there is one."""
        network = self.network if self.average is None else self.average.module
        assert isinstance(network, DeepLab)
        return network

    def is_finite(self) -> bool:
        """Return whether every number of the network is finite."""
        tensors = [*self.network.parameters(), *(each for each in self.network.buffers() if each.is_floating_point())]
        return all(bool(each.detach().sum(dtype=torch.float64).isfinite()) for each in tensors)


def describe_data(dataset: SegmentationFolder) -> str:
    """Return a digest of the names of classes and images, in their order."""
    names = [dataset.classes, [item.name for item in dataset.items]]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def save_checkpoint(path: Path, state: TrainingState, settings: TrainSettings, iteration: int) -> None:
    """Write the state after ``iteration`` iterations, whole or not at all.

    Raises:
        OSError: The file cannot be written, for example on a full disk; an existing one stays as it
            is.
        FloatingPointError: A weight is NaN or inf; nothing is written.
    """
    if not state.is_finite():
        raise FloatingPointError(f"the network holds NaN or inf after {iteration} iterations")
    stored = {
        "model": _architecture(state.network),
        "settings": as_dict(settings),
        "data": state.data,
        "iteration": iteration,
        "network": state.network.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
    }
    if state.average is not None:
        stored["average"] = state.average.module.state_dict()  # so that `load_weights` takes it
    try:
        write_stored(path, TRAINING, stored)
    except OSError as error:
        kept = f"; what was there, of {read_iteration(path)} iterations, is kept" if path.exists() else ""
        raise OSError(error.errno, f"the checkpoint cannot be written ({error.strerror}){kept}", str(path)) from error


def write_stored(path: Path, format: Format, stored: Mapping[str, Any]) -> None:
    """Write a checkpoint for `read_stored`, whole or not at all."""
    buffer = io.BytesIO()  # torch would turn a full disk into an error of its own that does not say so
    torch.save({"format": format.name, **stored}, buffer)
    with atomic_write(path) as stream:
        stream.write(buffer.getbuffer())


def load_checkpoint(path: Path, state: TrainingState, settings: TrainSettings) -> int:
    """Read what `save_checkpoint` wrote into ``state``.

    Returns:
        The iterations that are done.

    Raises:
        ValueError: The file is no checkpoint, or that of another network, of other data or of other
            settings; ``state`` is unchanged.
    """
    stored = read_stored(path, TRAINING)
    here = _architecture(state.network)
    if stored["model"] != here:
        raise ValueError(f"{path} is of another network: {_words(stored['model'])}; this training's is {_words(here)}")
    _check_settings(path, stored["settings"], as_dict(settings))
    if stored.get("data", state.data) != state.data:  # older checkpoints do not say
        raise ValueError(
            f"{path} is of a training on other data: images or classes in {settings.root} have other names than there, or "
            "another order. Give that data, or train into another folder"
        )
    shapes = {name: tuple(value.shape) for name, value in state.network.state_dict().items()}
    if {name: tuple(value.shape) for name, value in stored["network"].items()} != shapes:
        raise ValueError(f"{path} is of another network, which was called {here['model']} too: its layers differ")
    if state.average is not None and not isinstance(stored.get("average"), dict):
        raise ValueError(f"{path}: average is missing, or something else; the checkpoint is damaged")
    iteration: int = stored["iteration"]
    if not 0 <= iteration <= settings.iterations:
        raise ValueError(f"{path} must be of 0 to {settings.iterations} iterations; got {iteration}")
    state.network.load_state_dict(stored["network"])
    state.optimizer.load_state_dict(stored["optimizer"])
    state.scaler.load_state_dict(stored["scaler"])
    if state.average is not None:
        state.average.module.load_state_dict(stored["average"])
        state.average.n_averaged.fill_(iteration)
    return iteration


def read_iteration(path: Path) -> int:
    """Return the number of iterations after which a checkpoint was written."""
    iteration: int = read_stored(path, TRAINING)["iteration"]
    return iteration


def read_stored(path: Path, format: Format) -> dict[str, Any]:
    """Read what `write_stored` wrote; no code in the file is run.

    Raises:
        ValueError: The file is damaged or of another kind.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers raise nearly anything
        raise ValueError(
            f"{path}: cannot be read as a checkpoint of deeplab-crf {format.command}; it is damaged, or another file"
        ) from error
    if not isinstance(stored, dict) or stored.get("format") != format.name:
        raise ValueError(f"{path} is not a checkpoint of this version of deeplab-crf {format.command}")
    wrong = [name for name, kind in format.parts.items() if not isinstance(stored.get(name), kind)]
    if wrong:
        raise ValueError(f"{path}: {', '.join(wrong)} is missing, or something else; the checkpoint is damaged")
    return stored


def _architecture(network: DeepLab) -> dict[str, Any]:
    return {"model": network.variant.name, "num_classes": network.num_classes, "multi_scale": network.multi_scale}


def _words(architecture: dict[str, Any]) -> str:
    scales = "several scales" if architecture["multi_scale"] else "one scale"
    return f"{architecture['model']} with {architecture['num_classes']} classes at {scales}"


def _check_settings(path: Path, stored: dict[str, Any], given: dict[str, Any]) -> None:
    """Compare settings.

    One that a checkpoint lacks had no effect when it was written, so it counts as its default.
    """
    stored = {each.name: each.default for each in fields(TrainSettings) if each.default not in (MISSING, None)} | stored
    different = [name for name in {**stored, **given} if name not in FREE and stored.get(name) != given.get(name)]
    if different:
        told = ", ".join(f"{name} = {given.get(name)!r} (there {stored.get(name)!r})" for name in different)
        raise ValueError(
            f"{path} is of a training with other settings: {told}. Give those, or train into another folder"
        )
