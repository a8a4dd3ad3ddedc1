"""``deeplab-crf segment`` and ``deeplab-crf convert``: files, folders, what is written and what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caffe_files import V1_FILE, net
from image_files import files, read
from model_samples import small_model
from numpy.typing import NDArray
from PIL import Image
from samples import photo, run_python
from slow_network import vgg_weights

from deeplab_crf.cli import main
from deeplab_crf.core.pairwise import Bilateral
from deeplab_crf.core.presets import Preset, save_preset
from deeplab_crf.data.images import voc_palette
from deeplab_crf.models import (
    SegmentationPipeline,
    Usage,
    build_model,
    load_model,
    load_weights,
    save_weights,
)

HEIGHT, WIDTH = 24, 32
NAME = "v2-compact-aspp"

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_weights(small_model(NAME), path)
    return path


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> NDArray[np.uint8]:
    path.parent.mkdir(exist_ok=True)
    image = photo(*size, seed=seed)
    Image.fromarray(image).save(path)
    return image


def segment(*arguments: Any) -> int:
    return main(["segment", *map(str, arguments), "--pad-to", "1"])


def test_labels_overlays_figures_and_legend(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, out = write_image(tmp_path / "cat.png"), tmp_path / "out"
    assert segment(tmp_path / "cat.png", "--weights", weights, "-o", out) == 0
    assert files(out) == ["cat.png", "figures/cat.png", "legend/legend.png", "overlays/cat.png"]
    (want,) = SegmentationPipeline(load_model(weights)[0], pad_to=1).predict(image)
    np.testing.assert_array_equal(read(out / "cat.png"), want.labels)
    with Image.open(out / "cat.png") as image:
        assert image.mode == "P"
        assert tuple(image.getpalette()[:63]) == voc_palette(21)
    assert read(out / "overlays" / "cat.png").shape == (HEIGHT, WIDTH, 3)
    figure = read(out / "figures" / "cat.png")
    assert figure.shape[0] > HEIGHT
    assert figure.shape[1] >= 3 * WIDTH
    spoken = capsys.readouterr()
    assert "1 of 1 done" in spoken.out
    assert f"{NAME}, 3 classes" in spoken.err


def test_every_option_reaches_the_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Spy(SegmentationPipeline):
        def __init__(self, network: Any, crf: Any, **options: Any) -> None:
            seen.update(options, crf=crf, scales=network.scales, name=network.variant.name, classes=network.num_classes)
            super().__init__(network, crf, **options)

    monkeypatch.setattr("deeplab_crf.models.SegmentationPipeline", Spy)
    write_image(tmp_path / "cat.png")
    path = tmp_path / "net.caffemodel"
    path.write_bytes(net(vgg_weights(2, 5, 3, classes=4), V1_FILE))
    common = ["segment", str(tmp_path / "cat.png"), "--weights", str(path), "-o", str(tmp_path / "out"), "--overwrite"]
    options = (
        "--model v2-vgg16-largefov --num-classes 4 --multi-scale --preset crfasrnn --min-probability 0.25 --pad-to 9 "
        "--longer-side 20 --threads 2"
    )
    assert main([*common, *options.split()]) == 0
    assert seen == {
        "crf": "crfasrnn",
        "min_probability": 0.25,
        "longer_side": 20,
        "pad_to": 9,
        "image_range": (0, 255),  # files are read so
        "scales": (1.0, 0.75, 0.5),
        "name": "v2-vgg16-largefov",
        "classes": 4,
    }
    assert torch.get_num_threads() == 2
    assert main([*common, "--model", "v1-vgg16-largefov", "--pad-to", "1"]) == 0
    assert (seen["crf"], seen["scales"]) == ("released", (1.0,))
    assert main([*common, "--model", "v1-vgg16-largefov", "--pad-to", "1", "--no-crf"]) == 0
    assert seen["crf"] is None


def test_without_crf_and_without_figures(tmp_path: Path, weights: Path) -> None:
    image, out = write_image(tmp_path / "cat.png"), tmp_path / "out"
    assert segment(tmp_path / "cat.png", "--weights", weights, "-o", out, "--no-crf", "--no-figures") == 0
    assert files(out) == ["cat.png"]
    (want,) = SegmentationPipeline(load_model(weights)[0], None, pad_to=1).predict(image)
    np.testing.assert_array_equal(read(out / "cat.png"), want.labels)


def test_folders_with_broken_files(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    for seed, stem in enumerate("abd"):
        write_image(photos / f"{stem}.png", seed)
    (photos / "c.png").write_bytes((photos / "a.png").read_bytes()[:200])
    (photos / "e.jpg").write_text("not found")
    (photos / "notes.txt").write_text("no image")
    assert segment(photos, "--weights", weights, "-o", out, "--no-figures") == 1
    assert files(out) == ["a.png", "b.png", "d.png"]
    spoken = capsys.readouterr()
    assert "3 of 5 done" in spoken.out
    assert "Error: 2 failed:" in spoken.err
    for name in ("c.png", "e.jpg"):
        assert f"{photos / name}: cannot be read as an image" in spoken.err


def test_images_are_skipped_while_their_results_are_true(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "photos" / "a.png")
    write_image(tmp_path / "photos" / "b.png", seed=1)
    out, other, preset = tmp_path / "out", tmp_path / "other.safetensors", tmp_path / "mine.toml"
    network = small_model(NAME)
    with torch.no_grad():
        network.classifier.branches[0].bias[1] += 9
    save_weights(network, other)
    common = (tmp_path / "photos", "-o", out)

    def said(*options: Any) -> str:
        assert segment(*common, *options) == 0
        return capsys.readouterr().out

    assert said("--weights", weights) == f"2 of 2 done: 2 made; results in {out}\n"
    whole = {name: (out / name).read_bytes() for name in files(out)}
    with monkeypatch.context() as patch:
        patch.setattr("deeplab_crf.cli.segment.make_pipeline", lambda *_, **__: pytest.fail("the network was loaded"))
        weights.rename(tmp_path / "moved.safetensors")
        assert "2 of 2 done: 2 up to date" in said("--weights", tmp_path / "moved.safetensors", "--threads", 1)
        assert "2 of 2 done: 2 skipped because they exist" in said("--weights", other, "--skip-existing")
    weights = tmp_path / "moved.safetensors"
    again = "made again because inputs, settings or results had changed"
    assert f"2 of 2 done: 2 {again}" in said("--weights", other)
    assert (out / "a.png").read_bytes() != whole["a.png"]
    assert f"2 of 2 done: 2 {again}" in said("--weights", weights)
    assert {name: (out / name).read_bytes() for name in files(out)} == whole
    save_preset(Preset("mine", (Bilateral(9.0, 30.0, 5.0),), iterations=2), preset)
    assert f"2 of 2 done: 2 {again}" in said("--weights", weights, "--preset", preset)
    save_preset(Preset("renamed", (Bilateral(9.0, 30.0, 5.0),), iterations=2), preset)
    assert "2 of 2 done: 2 up to date" in said("--weights", weights, "--preset", preset)
    save_preset(Preset("mine", (Bilateral(9.0, 30.0, 5.0),), iterations=3), preset)
    assert f"2 of 2 done: 2 {again}" in said("--weights", weights, "--preset", preset)
    (out / "figures" / "b.png").unlink()  # all files of an image count together
    (out / "legend" / "legend.png").write_bytes(b"damaged")  # the legend alone is made from the weights
    assert f"2 of 2 done: 1 {again}, 1 up to date" in said("--weights", weights, "--preset", preset)
    assert (out / "legend" / "legend.png").read_bytes() == whole["legend/legend.png"]
    assert f"2 of 2 done: 2 {again}" in said("--weights", weights, "--no-crf", "--no-figures")
    assert files(out) == ["a.png", "b.png", "legend/legend.png"], (
        "figures of other settings do not stay beside the labels"
    )
    assert "2 of 2 done: 2 made again;" in said("--weights", weights, "--no-crf", "--no-figures", "--overwrite")


def test_images_of_every_kind(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One pixel, 16 bits, CMYK, palette, alpha, on its side by its EXIF: a label for each pixel, the right way up."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    rgb = write_image(photos / "plain.png")
    image = Image.fromarray(rgb)
    Image.fromarray(rgb[:1, :1]).save(photos / "pixel.png")
    Image.fromarray(rgb[:, :, 0].astype(np.uint16) * 257).save(photos / "deep.png")
    image.convert("CMYK").save(photos / "cmyk.tif")
    image.convert("P").save(photos / "palette.png")
    image.convert("RGBA").save(photos / "alpha.png")
    image.convert("L").save(photos / "gray.png")
    turned = image.rotate(90, expand=True)
    turned.getexif()[0x0112] = 6
    turned.save(photos / "turned.png", exif=turned.getexif())
    assert segment(photos, "--weights", weights, "-o", out) == 1
    assert "deep.png: the image must be in 0..255" in capsys.readouterr().err
    assert segment(photos / "deep.png", "--image-range", "0,65535", "--weights", weights, "-o", out) == 0
    sizes = {path.stem: read(path).shape for path in out.glob("*.png")}
    assert sizes.pop("pixel") == (1, 1)
    assert len(sizes) == 7
    assert set(sizes.values()) == {(HEIGHT, WIDTH)}
    for name in ("alpha", "turned"):
        np.testing.assert_array_equal(read(out / f"{name}.png"), read(out / "plain.png"))
    assert read(out / "overlays" / "turned.png").shape == (HEIGHT, WIDTH, 3)


def test_what_cannot_be_is_said_in_one_line(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "cat.png")
    write_image(tmp_path / "other" / "cat.png")
    (tmp_path / "empty").mkdir()
    cat, out = tmp_path / "cat.png", tmp_path / "out"
    bad = tmp_path / "bad.pth"
    bad.write_text("not found")
    several = tmp_path / "several.caffemodel"
    several.write_bytes(net(vgg_weights(2, 5, 3)))
    cases = [
        (1, "would have the same name", [cat, tmp_path / "other", "--weights", weights, "-o", out]),
        (1, "is an input and would be overwritten", [cat, "--weights", weights, "-o", tmp_path]),
        (1, "no image in", [tmp_path / "empty", "--weights", weights, "-o", out]),
        (1, "bad.pth: cannot be read as weights", [cat, "--weights", bad, "-o", out]),
        (1, "--num-classes 3", [cat, "--weights", weights, "--num-classes", 5, "-o", out]),
        (1, "say which with name=... (--model)", [cat, "--weights", several, "-o", out]),
        (1, "does not fit the model", [cat, "--weights", weights, "--model", "v2-compact-largefov", "-o", out]),
        (2, "--device", [cat, "--weights", weights, "-o", out, "--device", "cuda:77"]),
        (2, "--device", [cat, "--weights", weights, "-o", out, "--device", "gpu"]),
        (2, "is not one of", [cat, "--weights", weights, "--model", "v3", "-o", out]),
    ]
    for status, message, arguments in cases:
        assert segment(*arguments) == status, message
        spoken = capsys.readouterr().err
        assert message in spoken
        assert spoken.count("Error: ") == 1
    assert not out.exists()


def test_help_needs_no_torch() -> None:
    script = (
        "import sys; sys.modules['torch'] = None\nfrom deeplab_crf.cli import main\n"
        "assert main(['segment', '--help']) == 0 and main(['convert', '--help']) == 0"
    )
    done = run_python(script)
    assert done.returncode == 0, done.stderr
    assert "--weights" in done.stdout


def test_without_torch_it_says_what_to_install(tmp_path: Path) -> None:
    write_image(tmp_path / "cat.png")
    (tmp_path / "net.pth").write_text("x")
    arguments = [
        "segment",
        str(tmp_path / "cat.png"),
        "--weights",
        str(tmp_path / "net.pth"),
        "-o",
        str(tmp_path / "out"),
    ]
    script = f"import sys; sys.modules['torch'] = None\nfrom deeplab_crf.cli import main\nsys.exit(main({arguments!r}))"
    done = run_python(script)
    assert done.returncode == 1
    assert 'pip install "deeplab-crf[torch]"' in done.stderr
    assert done.stderr.count("\n") == 1


# ---------------------------------------------------------------- convert


def test_convert_writes_a_file_that_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "net.caffemodel", tmp_path / "out.safetensors"
    weights = vgg_weights(2, 5, 7, classes=4)
    source.write_bytes(net(weights, V1_FILE))
    assert main(["convert", str(source), str(out)]) == 0
    assert "caffe names, 32 tensors loaded" in capsys.readouterr().out
    model, report = load_model(out)
    assert (model.variant.name, model.num_classes, report.format) == ("v1-vgg16-7x7", 4, "deeplab-crf")
    np.testing.assert_array_equal(model.backbone.features[0].weight.detach(), weights["conv1_1"][0])
    assert main(["convert", str(source), str(out)]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert main(["convert", str(source), str(out), "--overwrite"]) == 0


def test_convert_packs_for_use(tmp_path: Path) -> None:
    source, out = tmp_path / "net.safetensors", tmp_path / "out.safetensors"
    model = small_model()
    model.usage = Usage(("sky", "road", "car"), 48)
    save_weights(model, source)
    assert main(["convert", str(source), str(out), "--half", "--crf", "crfasrnn"]) == 0
    packed = load_model(out)[0]
    assert packed.usage == Usage(("sky", "road", "car"), 48, "crfasrnn")
    weight = model.backbone.layer4[0].conv2.weight.detach()
    assert torch.equal(packed.backbone.layer4[0].conv2.weight, weight.half().float())


def test_convert_makes_a_backbone_to_start_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "vgg16.pth", tmp_path / "out.safetensors"
    backbone = build_model("v1-narrow-largefov").backbone.state_dict()
    torch.save(backbone, source)
    start = ["convert", str(source), str(out), "--backbone-only"]
    assert main(start) == 2
    assert "it needs --model" in capsys.readouterr().err
    start += ["--model", "v1-narrow-largefov"]
    assert main(start) == 1
    assert "--input-convention" in capsys.readouterr().err
    assert not out.exists()
    assert main([*start, "--input-convention", "bgr-255"]) == 0
    said = capsys.readouterr().out
    assert "input: BGR in 0..255 minus the mean (bgr-255), as asked for" in said
    assert "v1-narrow-largefov, its backbone" in said
    network = build_model("v1-narrow-largefov")
    load_weights(network, out)
    torch.testing.assert_close(network.backbone.state_dict(), backbone, rtol=0, atol=0)


def test_convert_asks_where_several_networks_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "net.caffemodel", tmp_path / "out.safetensors"
    source.write_bytes(net(vgg_weights(2, 5, 3)))
    assert main(["convert", str(source), str(out)]) == 1
    assert "v1-vgg16-largefov and v2-vgg16-largefov" in capsys.readouterr().err
    assert not out.exists()
    assert main(["convert", str(source), str(out), "--model", "v1-vgg16-largefov"]) == 0
    assert load_model(out)[0].variant.name == "v1-vgg16-largefov"
    assert main(["convert", str(source), str(tmp_path / "out.pth")]) == 2
    assert "must end in .safetensors" in capsys.readouterr().err


def test_a_preset_file_is_taken_like_a_name(tmp_path: Path, weights: Path) -> None:
    image, preset = write_image(tmp_path / "cat.png"), tmp_path / "mine.toml"
    save_preset(Preset("mine", (Bilateral(9.0, 30.0, 5.0),), iterations=2), preset)
    assert segment(tmp_path / "cat.png", "--weights", weights, "-o", tmp_path / "out", "--preset", preset) == 0
    (want,) = SegmentationPipeline(load_model(weights)[0], preset, pad_to=1).predict(image)
    assert "sxy=(9.0, 9.0), srgb=(30.0, 30.0, 30.0)" in repr(SegmentationPipeline(load_model(weights)[0], preset).crf)
    np.testing.assert_array_equal(read(tmp_path / "out" / "cat.png"), want.labels)
