"""Settings: what may be given, what is said of the rest, and files of them."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from deeplab_crf.training.settings import FREE, TrainSettings, make_settings, read_values, write_settings

NEEDED = {"model": "v2-vgg16-aspp-l", "data": "camvid", "root": "somewhere"}


def test_defaults_are_the_papers() -> None:
    settings = TrainSettings(**NEEDED)
    assert (settings.iterations, settings.batch, settings.crop) == (20000, 10, 321)
    assert (settings.learning_rate, settings.momentum, settings.weight_decay) == (1e-3, 0.9, 5e-4)
    assert (settings.policy, settings.scales, settings.mirror) == ("poly", (0.5, 0.75, 1.0, 1.25, 1.5), True)
    assert (settings.colour, settings.class_weights, settings.amp) == (0, "none", "off")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("model", "v3", "model must be one of v1-vgg16-largefov, .*; got 'v3'"),
        ("data", "coco", "data must be one of camvid, voc, folder; got 'coco'"),
        ("root", 7, "root must be text; got 7"),
        ("iterations", 0, "iterations must be a whole number >= 1; got 0"),
        ("iterations", 1.5, "iterations must be a whole number >= 1; got 1.5"),
        ("batch", True, "batch must be a whole number >= 1; got True"),
        ("crop", "321", "crop must be a whole number >= 1; got '321'"),
        ("scales", [], r"scales must be a list of numbers in \[0.1, 10\]; got \[\]"),
        ("scales", [1, 0], r"scales must be a list of numbers in \[0.1, 10\]; got \[1, 0\]"),
        ("mirror", 1, "mirror must be true or false; got 1"),
        ("threads", 1025, r"threads must be a whole number in \[0, 1024\]; got 1025"),
        ("workers", 1025, r"workers must be a whole number in \[0, 1024\]; got 1025"),
        ("colour", 1.5, r"colour must be a number in \[0, 1\]; got 1.5"),
        ("learning_rate", 0, "learning_rate must be a number >= 1e-12; got 0"),
        ("learning_rate", float("nan"), "learning_rate must be a number .*; got nan"),
        ("learning_rate", float("inf"), "learning_rate must be a number .*; got inf"),
        ("momentum", -0.1, r"momentum must be a number in \[0, 1\]; got -0.1"),
        ("policy", "cosine", "policy must be one of poly, step; got 'cosine'"),
        ("class_weights", "yes", "class_weights must be one of none, balanced; got 'yes'"),
        ("amp", "float16", "amp must be off or bfloat16 on cpu"),
        ("seed", 2**32, "seed must be a whole number in"),
        ("accumulate", 3, "batch must be a multiple of accumulate, 3; got 10"),
        ("val_fraction", 1.0, r"val_fraction must be a number in \[0, 0.9\]; got 1.0"),
        ("val_seed", 3, "val_seed must be left out without val_fraction, whose choice it is; got 3"),
        ("new_classifier", True, "new_classifier must be false without init"),
    ],
)
def test_what_cannot_be_is_named(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{expected}"):
        TrainSettings(**(NEEDED | {name: value}))


def test_a_part_that_is_held_back_takes_the_place_of_a_split() -> None:
    with pytest.raises(ValueError, match=r"^val_split must be left out with val_fraction, .*; got 'test'"):
        TrainSettings(**NEEDED, val_fraction=0.2, val_split="test")
    assert TrainSettings(**NEEDED, val_fraction=0.2, val_seed=3).val_seed == 3


def test_adamw_needs_a_first_beta_below_one() -> None:
    with pytest.raises(ValueError, match=r"^momentum must be below 1 with optimizer adamw, .*; got 1\.0"):
        TrainSettings(**NEEDED, optimizer="adamw", momentum=1)
    TrainSettings(**NEEDED, momentum=1)


def test_names_that_are_unknown_or_missing() -> None:
    with pytest.raises(ValueError, match=r"there is no setting called crops, rate; known: model, .*crop, "):
        make_settings(NEEDED | {"crops": 3, "rate": 1})
    with pytest.raises(ValueError, match=r"^model, root must be given"):
        make_settings({"data": "voc"})


def test_files_give_back_what_was_written(tmp_path: Path) -> None:
    settings = TrainSettings(
        **NEEDED, init='a "name"\\with\x7f signs ä', multi_scale=False, scales=(1,), learning_rate=2.5e-4, mirror=False
    )
    path = tmp_path / "settings.toml"
    for each in (settings, replace(settings, multi_scale=None), TrainSettings(**NEEDED)):
        write_settings(each, path)
        assert make_settings(read_values(path)) == each


def test_files_of_windows_editors_begin_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(b"\xef\xbb\xbfcrop = 33\r\n")
    assert read_values(path) == {"crop": 33}


def test_files_with_unknown_names(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("learning-rate = 1e-3\n")
    with pytest.raises(
        ValueError, match=rf"^{path}: there is no setting called learning-rate; known: .*learning_rate, "
    ):
        read_values(path)


@pytest.mark.parametrize("content", [b"crop = ", b"crop = 3\ncrop = 4", b"\xff"])
def test_files_that_are_no_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path}: cannot be read as TOML"):
        read_values(path)


def test_what_may_change_on_the_way_are_settings() -> None:
    assert {each.name for each in fields(TrainSettings)} >= FREE
