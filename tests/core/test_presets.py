"""Presets against the table of the papers' settings."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from deeplab_crf.core.pairwise import Bilateral, Gaussian, PairwiseKernel
from deeplab_crf.core.presets import PRESETS, Preset, get_preset, load_preset, save_preset

# name: bilateral (weight, sxy, srgb), Gaussian (weight, sxy), iterations, normalization
TABLE = {
    "deeplab-v1-largefov": ((5, 50, 10), (3, 3), 10, "after"),
    "deeplab-v1-largefov-pydensecrf": ((4, 121, 5), (3, 3), 10, "symmetric"),
    "deeplab-v1-msc": ((3, 95, 3), (3, 3), 10, "after"),
    "deeplab-v1-msc-largefov": ((4, 83, 5), (3, 3), 10, "after"),
    "deeplab-v2-vgg16": ((4, 65, 3), (2, 2), 10, "after"),
    "deeplab-v2-resnet101": ((4, 67, 3), (3, 1), 10, "after"),
    "deeplab-v2-resnet101-pydensecrf": ((4, 67, 3), (3, 1), 10, "symmetric"),
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
    assert set(PRESETS) == {*TABLE, "street"}  # the last is of the bundled network, not of a paper


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the reference notes are not beside this checkout")
def test_presets_equal_the_reference_table() -> None:
    section = REFERENCE.read_text().split("## 3. CRF settings")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| ([^|]+?) \| (\d+ / \d+ / \d+ \| \d+ / \d+) \|$", section, flags=re.MULTILINE))
    assert set(rows) == set(ROWS)
    for row, name in ROWS.items():
        bilateral, gaussian = (tuple(map(float, cell.split("/"))) for cell in rows[row].split("|"))
        assert numbers(get_preset(name)) == (bilateral, gaussian), row


def test_unknown_name_lists_the_names() -> None:
    with pytest.raises(
        ValueError,
        match=r"preset must be one of deeplab-v1-largefov, .*pydensecrf, street, or a file .*; got 'deeplab'",
    ):
        get_preset("deeplab")


def test_presets_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        PRESETS["crfasrnn"] = get_preset("pydensecrf")  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_preset("crfasrnn").iterations = 1  # type: ignore[misc]


FULL = Preset(
    "mine",
    (
        Gaussian(sxy=(3.0, 2.5), weight=0.1 + 0.2),
        Bilateral(sxy=49.3, srgb=(3.0, 4.0, 1e-5), weight=4, normalization="symmetric"),
    ),
    iterations=7,
    normalization="before",
    description='from "C:\\data"\nby hand \x7f ü \ud800',
)


def settings(preset: Preset) -> object:
    return [
        dataclasses.astuple(preset)[2:4],
        *((type(kernel), dataclasses.astuple(kernel)) for kernel in preset.kernels),
    ]


def test_a_saved_preset_reads_back_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mine.toml"
    save_preset(FULL, path)
    again = load_preset(path)
    assert settings(again) == settings(FULL)
    assert again.name == "mine"
    assert again.description == FULL.description.replace("\ud800", "?")


@pytest.mark.parametrize("name", TABLE)
def test_every_published_preset_can_be_saved(name: str, tmp_path: Path) -> None:
    save_preset(get_preset(name), tmp_path / "x.toml")
    assert settings(get_preset(tmp_path / "x.toml")) == settings(get_preset(name))


def test_get_preset_takes_names_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_preset(FULL, tmp_path / "mine.toml")
    save_preset(FULL, tmp_path / "crfasrnn")
    for given in ("mine.toml", tmp_path / "mine.toml", str(tmp_path / "mine.toml"), "./crfasrnn", Path("crfasrnn")):
        assert get_preset(given).name == "mine"
    assert get_preset("crfasrnn") is PRESETS["crfasrnn"]


def test_a_preset_that_a_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    for kernel in (Gaussian(compat=-np.eye(2)), PairwiseKernel(np.zeros((4, 2)))):
        with pytest.raises(ValueError, match=r"kernels\[0\] of a preset to be saved must be .*; got (Gauss|Pair)"):
            save_preset(Preset("x", (kernel,)), tmp_path / "x.toml")
    assert not list(tmp_path.iterdir())


GOOD = """
name = "mine"
iterations = 10
normalization = "after"
[[kernels]]
type = "gaussian"
sxy = 3
weight = 3
[[kernels]]
type = "bilateral"
sxy = 50
srgb = [3, 4, 5]
weight = 4
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "mine"', "", "name must be given; got iterations, normalization, kernels"),
        ('name = "mine"', "name = 3", "name must be a text in quotes; got 3"),
        ("iterations = 10", "", "iterations must be given"),
        ("iterations = 10", "iterations = 2.5", "iterations must be a whole number >= 0; got 2.5"),
        ("iterations = 10", "iterations = true", "iterations must be a whole number >= 0; got True"),
        ("iterations = 10", "iterations = -1", "iterations must be a whole number >= 0; got -1"),
        ('"after"', '"later"', "normalization must be one of none, before, after, symmetric; got 'later'"),
        ("name =", "colour = 1\nname =", "keys must be among name, .*, description; got colour"),
        ('"gaussian"', '"laplace"', r"kernels\[0\]: type must be one of gaussian, bilateral; got 'laplace'"),
        ('type = "gaussian"', "", r"kernels\[0\]: type must be one of gaussian, bilateral; got None"),
        ("sxy = 3\n", "sxy = 3\nsrgb = 3\n", r"kernels\[0\]: keys must be among type, sxy, weight, .*; got srgb"),
        ("srgb = [3, 4, 5]", "", r"kernels\[1\]: srgb must be given; got type, sxy, weight"),
        ("sxy = 50", "sxy = 0", r"kernels\[1\]: sxy must be positive and finite .*; got 0"),
        ("sxy = 50", 'sxy = "wide"', r"kernels\[1\]: sxy must be a number or a list of numbers; got 'wide'"),
        ("[3, 4, 5]", "[]", r"kernels\[1\]: srgb must be a number or a list of numbers; got \[\]"),
        ("weight = 4", "weight = nan", r"kernels\[1\]: weight must be finite; got nan"),
        ("weight = 4", "weight = [4]", r"kernels\[1\]: weight must be a number; got \[4\]"),
        ("weight = 4", "weight = 4 4", "is not a TOML file .*line 13"),
    ],
)
def test_an_unusable_file_is_explained(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert get_preset(path).kernels[1].srgb == (3, 4, 5)  # type: ignore[union-attr]
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ValueError, match=f"^preset {re.escape(str(path))}:.*{message}"):
        get_preset(path)


def test_a_file_without_kernels_or_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    for text, message in (
        (GOOD.split("[[")[0], "kernels must be given"),
        (GOOD.split("[[")[0] + "kernels = []", r"kernels must be one or more tables \[\[kernels\]\]; got \[\]"),
        (GOOD.split("[[")[0] + "kernels = 3", r"kernels must be one or more tables \[\[kernels\]\]; got 3"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_preset(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    with pytest.raises(ValueError, match=r"x.toml: is not a TOML file"):
        load_preset(path)
    with pytest.raises(ValueError, match=r"preset .*absent.toml: cannot be read \(No such file"):
        load_preset(tmp_path / "absent.toml")
    with pytest.raises(ValueError, match=r"cannot be read \(Is a directory"):
        load_preset(tmp_path)
