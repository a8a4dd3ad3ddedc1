"""Presets against the table of the papers' settings."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from deeplab_crf.kernels import Bilateral, Gaussian
from deeplab_crf.presets import PRESETS, Preset, get_preset

# name: bilateral (weight, sxy, srgb), Gaussian (weight, sxy), iterations, normalization
TABLE = {
    "deeplab-v1-largefov": ((5, 50, 10), (3, 3), 10, "after"),
    "deeplab-v1-largefov-pydensecrf": ((4, 121, 5), (3, 3), 10, "symmetric"),
    "deeplab-v1-msc": ((3, 95, 3), (3, 3), 10, "after"),
    "deeplab-v1-msc-largefov": ((4, 83, 5), (3, 3), 10, "after"),
    "deeplab-v2-vgg16": ((4, 65, 3), (2, 2), 10, "after"),
    "deeplab-v2-resnet101": ((4, 67, 3), (3, 1), 10, "after"),
    "crfasrnn": ((5, 160, 3), (3, 3), 10, "after"),
    "pydensecrf": ((10, 80, 13), (3, 3), 5, "symmetric"),
}
ROWS = {
    "V1 LargeFOV, released": "deeplab-v1-largefov",
    "V1 LargeFOV, re-implementations": "deeplab-v1-largefov-pydensecrf",
    "V1 MSc": "deeplab-v1-msc",
    "V1 MSc-LargeFOV": "deeplab-v1-msc-largefov",
    "V2 VGG-16 ASPP": "deeplab-v2-vgg16",
    "V2 ResNet-101": "deeplab-v2-resnet101",
    "CRF-RNN": "crfasrnn",
}
REFERENCE = Path(__file__).parents[2] / "shared" / "reference" / "deeplab.md"


def numbers(preset: Preset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    gaussian, bilateral = preset.kernels
    assert isinstance(gaussian, Gaussian)
    assert isinstance(bilateral, Bilateral)
    assert gaussian.normalization is None
    assert bilateral.normalization is None
    return (bilateral.weight, bilateral.sxy, bilateral.srgb), (gaussian.weight, gaussian.sxy)


@pytest.mark.parametrize("name", TABLE)
def test_preset_holds_the_papers_numbers(name: str) -> None:
    preset = get_preset(name)
    assert (*numbers(preset), preset.iterations, preset.normalization) == TABLE[name]
    assert preset.name == name
    assert preset.description


def test_there_are_no_other_presets() -> None:
    assert set(PRESETS) == set(TABLE)


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the reference notes are not beside this checkout")
def test_presets_equal_the_reference_table() -> None:
    section = REFERENCE.read_text().split("## 3. CRF settings")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| ([^|]+?) \| (\d+ / \d+ / \d+ \| \d+ / \d+) \|$", section, flags=re.MULTILINE))
    assert set(rows) == set(ROWS)
    for row, name in ROWS.items():
        bilateral, gaussian = (tuple(map(float, cell.split("/"))) for cell in rows[row].split("|"))
        assert numbers(get_preset(name)) == (bilateral, gaussian), row


def test_unknown_name_lists_the_names() -> None:
    with pytest.raises(ValueError, match=r"preset must be one of deeplab-v1-largefov, .*pydensecrf; got 'deeplab'"):
        get_preset("deeplab")


def test_presets_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        PRESETS["crfasrnn"] = get_preset("pydensecrf")  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_preset("crfasrnn").iterations = 1  # type: ignore[misc]
