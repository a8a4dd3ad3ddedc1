"""What our own files carry beside the numbers, and how small they can be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_samples import CLASSES, narrow, numbers, small_model

from deeplab_crf.models import DeepLab, Usage, build_model, load_model, load_weights, save_weights


def test_usage_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("v2-compact-largefov", 3)
    model.usage = Usage(("sky", "road, wet", "car"), 720, "deeplab-v2-vgg16", align_corners=False)
    save_weights(model, tmp_path / "a.safetensors")
    assert load_model(tmp_path / "a.safetensors")[0].usage == model.usage
    model.usage = Usage()
    save_weights(model, tmp_path / "b.safetensors")
    assert load_model(tmp_path / "b.safetensors")[0].usage == Usage()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ('{"classes": [], "crf": null}', "cannot be read"),
        ('{"classes": ["a"], "longer_side": null, "crf": null}', "must name its 3 classes; got \\('a',\\)"),
        ('{"classes": ["a", "b", 3], "longer_side": null, "crf": null}', "must name its 3 classes"),
        ('{"classes": [], "longer_side": 0, "crf": null}', "must hold pixels"),
        ('{"classes": [], "longer_side": true, "crf": null}', "must hold pixels"),
        ('{"classes": [], "longer_side": null, "crf": 5}', "must hold pixels and a preset's name"),
        ('{"classes": [], "longer_side": 1000000000, "crf": null}', "must hold pixels"),
        ('{"classes": [], "longer_side": null, "crf": "/dev/zero"}', "must name a published preset .* got '/dev/zero'"),
        ('{"classes": [], "longer_side": null, "crf": "./mine.toml"}', "must name a published preset"),
        ("[" * 200_000, "cannot be read"),
        ('{"classes": ' + "[" * 100_000 + "]" * 100_000 + "}", "cannot be read"),
        ("[1]", "cannot be read"),
        ('{"classes": [], "longer_side": null, "crf": null, "align_corners": "no"}', "true or false as align_corners"),
    ],
)
def test_nonsense_in_the_usage_is_named(tmp_path: Path, text: str, message: str) -> None:
    from safetensors.torch import save_file

    model = build_model("v2-compact-largefov", 3)
    path = tmp_path / "a.safetensors"
    metadata = {"format": "deeplab-crf", "model": "v2-compact-largefov", "usage": text}
    save_file({name: value.contiguous() for name, value in numbers(model).items()}, path, metadata)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


def test_a_preset_file_does_not_travel_with_weights(tmp_path: Path) -> None:
    model = build_model("v2-compact-largefov", 3)
    model.usage = Usage(crf="./mine.toml")
    with pytest.raises(ValueError, match=r"must name a published preset .* got '\./mine\.toml'"):
        save_weights(model, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_same_network_is_the_same_file(tmp_path: Path) -> None:
    """safetensors orders the metadata anew each time."""
    model = build_model("v2-compact-largefov", 3)
    paths = [tmp_path / f"{i}.safetensors" for i in range(6)]
    for path in paths:
        save_weights(model, path)
    assert len({path.read_bytes() for path in paths}) == 1
    header = paths[0].read_bytes()[8:400].decode("latin1")
    keys = [header.index(f'"{key}"') for key in ("format", "model", "multi_scale", "num_classes", "usage")]
    assert keys == sorted(keys)


def test_half_precision_files_round_and_take_half_the_space(tmp_path: Path) -> None:
    model = small_model("v1-vgg16-largefov")
    save_weights(model, tmp_path / "full.safetensors")
    save_weights(model, tmp_path / "half.safetensors", half=True)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.75 * sizes[0]  # a small net: names take much of it
    got = DeepLab(narrow("v1-vgg16-largefov"), CLASSES)
    load_weights(got, tmp_path / "half.safetensors")
    for name, value in numbers(model).items():
        torch.testing.assert_close(numbers(got)[name], value.half().float(), rtol=0, atol=0)
        assert numbers(got)[name].dtype == torch.float32
    with torch.no_grad():
        model.backbone.features[0].bias[0] = 1e6
    with pytest.raises(ValueError, match=r"backbone.features.0.bias must lie within 65504 of zero"):
        save_weights(model, tmp_path / "huge.safetensors", half=True)
    assert not (tmp_path / "huge.safetensors").exists()


def test_a_backbone_alone_is_an_initialisation(tmp_path: Path) -> None:
    model = small_model("v1-vgg16-largefov")
    other = DeepLab(narrow("v1-vgg16-largefov"), CLASSES)  # other numbers
    save_weights(model, tmp_path / "backbone.safetensors", classifier=False)
    head = {name: value.clone() for name, value in numbers(other).items() if name.startswith("classifier")}
    report = load_weights(other, tmp_path / "backbone.safetensors")
    assert set(report.missing) == set(head)
    for name, value in numbers(other).items():
        want = head[name] if name in head else numbers(model)[name]
        torch.testing.assert_close(value, want, rtol=0, atol=0)
    with pytest.raises(ValueError, match="has no classifier"):
        load_model(tmp_path / "backbone.safetensors")
