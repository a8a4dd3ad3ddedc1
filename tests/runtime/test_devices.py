"""Devices by name, and what is said where one cannot be used: whether torch, the build or the machine is at fault, and the cure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import samples
import torch
from PIL import Image

from deeplab_crf import dense_crf
from deeplab_crf.cli import main
from deeplab_crf.pydensecrf import set_device
from deeplab_crf.runtime import devices
from deeplab_crf.runtime.devices import find_device

NOT_BUILT = {"built": False, "usable": False, "why": "no compiler was there", "cure": "Install one"}
NO_DEVICE = {"built": True, "usable": False, "why": "the driver is too old", "cure": "Look with nvidia-smi"}
USABLE = {"built": True, "usable": True, "devices": 2, "why": "", "cure": ""}

# What each machine says.
MACHINES = {
    "CUDA not built": (
        NOT_BUILT,
        True,
        r"device cuda is not usable: CUDA is not built: no compiler was there\. Install one",
    ),
    "no device": (
        NO_DEVICE,
        True,
        r"device cuda is not usable: CUDA is built, but the driver is too old\. Look with nvidia",
    ),
    "torch without CUDA": (
        USABLE,
        False,
        r"device cuda is not usable: torch [0-9.]+\S* finds no CUDA device\. .*install a",
    ),
}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any], bool], None]:
    """Makes this machine another one: what the CUDA engine reports, and whether torch finds (two) devices."""

    def pretend(facts: dict[str, Any], torch_finds_devices: bool) -> None:
        monkeypatch.setattr(devices, "cuda_info", lambda: facts)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: torch_finds_devices)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)

    return pretend


def test_names(machine: Callable[[dict[str, Any], bool], None]) -> None:
    machine(USABLE, True)
    assert find_device("cpu") is None
    assert find_device("cuda") == torch.device("cuda", 1)
    assert find_device("cuda:0") == torch.device("cuda", 0)
    assert find_device(torch.device("cuda")) == torch.device("cuda", 1)
    assert find_device(torch.device("cpu")) is None


@pytest.mark.parametrize("name", ["gpu", "CUDA", "cuda:", "cuda:-1", "cuda:0,1", "cpu:0", "meta", ""])
def test_other_names(name: str) -> None:
    with pytest.raises(ValueError, match=r'device must be "cpu", "cuda" or "cuda:N"; got '):
        find_device(name)


def test_a_device_that_is_not_there(machine: Callable[[dict[str, Any], bool], None]) -> None:
    machine(USABLE, True)
    with pytest.raises(ValueError, match=r"device must be one of cuda:0 to cuda:1; got cuda:2"):
        find_device("cuda:2")


@pytest.mark.parametrize("name", MACHINES)
def test_every_door_says_why_not(
    name: str, machine: Callable[[dict[str, Any], bool], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts, torch_finds_devices, match = MACHINES[name]
    machine(facts, torch_finds_devices)
    image = samples.photo(6, 10)
    with pytest.raises(RuntimeError, match=match):
        dense_crf(image, logits=np.zeros((3, 6, 10)), device="cuda")
    with pytest.raises(RuntimeError, match=match):
        set_device("cuda")
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(image[..., 0] // 100).save(tmp_path / "labels.png")
    command = ["refine", str(tmp_path / "image.png"), str(tmp_path / "labels.png"), "-o", str(tmp_path / "out.png")]
    capsys.readouterr()
    assert main([*command, "--device", "cuda"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: Invalid value for '--device': device cuda is not usable: ")
    assert facts["cure"] in said
    assert not (tmp_path / "out.png").exists()
    assert main([*command, "--device", "gpu"]) == 2
    assert 'device must be "cpu", "cuda" or "cuda:N"' in capsys.readouterr().err
