"""From images to labels: what the pipeline accepts, what it gives, and that it trains, compiles and exports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from model_samples import CLASSES, small_model
from PIL import Image
from samples import photo

from deeplab_crf import Bilateral, DenseCRF, Gaussian
from deeplab_crf.models import SegmentationPipeline, Usage, training_loss

HEIGHT, WIDTH = 40, 52
MEAN = (104.008, 116.669, 122.675)


def pipeline(name: str = "v2-compact-aspp", **options: Any) -> SegmentationPipeline:
    return SegmentationPipeline(small_model(name), **({"pad_to": 1} | options))


def batch(*seeds: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Any:
    return torch.stack([torch.from_numpy(photo(*size, seed=seed)).permute(2, 0, 1) for seed in seeds])


# ---------------------------------------------------------------- what it computes


def test_a_prediction_is_network_then_crf() -> None:
    """Step by step: BGR minus the mean, padding at the bottom and right, scores, upsampling, the CRF on the unpadded image."""
    model, rgb = small_model(), photo(HEIGHT, WIDTH)
    (result,) = SegmentationPipeline(model, pad_to=65, fused=False).predict(rgb)
    seen = np.zeros((3, 65, 65), np.float32)
    seen[:, :HEIGHT, :WIDTH] = (rgb[:, :, ::-1].astype(np.float32) - np.float32(MEAN)).transpose(2, 0, 1)
    with torch.no_grad():
        logits = model(torch.from_numpy(seen)[None])["out"][..., :HEIGHT, :WIDTH]
        crf = DenseCRF.from_preset("deeplab-v2-resnet101", CLASSES)
        refined = crf(logits, torch.from_numpy(rgb).permute(2, 0, 1)[None])
    # The same network and CRF on the same input give the same bits. Subtracting the mean in float64 would change inputs by
    # 4e-6, logits by 8e-6 and refined logits by 2e-5: more than the defaults of assert_close on some processors.
    torch.testing.assert_close(result.network_logits, logits[0], rtol=0, atol=0)
    torch.testing.assert_close(result.logits, refined[0], rtol=0, atol=0)
    q = torch.softmax(refined[0], 0)
    torch.testing.assert_close(result.probabilities, q)
    torch.testing.assert_close(result.labels, q.argmax(0))
    torch.testing.assert_close(result.network_labels, logits[0].argmax(0))
    torch.testing.assert_close(result.entropy, -(q * q.log()).sum(0), rtol=1e-4, atol=1e-5)


def test_a_longer_side_is_what_the_network_sees() -> None:
    """The image resized as Pillow does, to half a grey level; scores at the image's size; the CRF on the image as it came."""
    model, rgb = small_model(), photo(HEIGHT, WIDTH)
    (result,) = SegmentationPipeline(model, None, longer_side=78, fused=False).predict(rgb)
    resized = np.asarray(Image.fromarray(rgb).resize((78, 60), Image.Resampling.BILINEAR))
    with torch.no_grad():
        seen = model(SegmentationPipeline(model).preprocess(torch.from_numpy(resized.copy()).permute(2, 0, 1)[None]))[
            "out"
        ]
        want = torch.nn.functional.interpolate(seen, (HEIGHT, WIDTH), mode="bilinear", antialias=True)[0]
    assert result.network_logits.shape == (CLASSES, HEIGHT, WIDTH)
    assert float((result.network_logits - want).norm() / (want - want.mean()).norm()) < 0.02
    (refined,) = SegmentationPipeline(model, longer_side=78, fused=False).predict(rgb)
    crf = DenseCRF.from_preset("deeplab-v2-resnet101", CLASSES)
    image = torch.from_numpy(rgb).permute(2, 0, 1)[None]
    torch.testing.assert_close(refined.logits, crf(result.network_logits[None], image)[0])


def test_the_network_says_its_longer_side_and_crf() -> None:
    model, rgb = small_model(), photo(HEIGHT, WIDTH)
    (want,) = SegmentationPipeline(model, "deeplab-v1-largefov", longer_side=78).predict(rgb)
    model.usage = Usage(longer_side=78, crf="deeplab-v1-largefov")
    (got,) = SegmentationPipeline(model).predict(rgb)
    assert torch.equal(got.logits, want.logits)
    (other,) = SegmentationPipeline(model, "deeplab-v2-vgg16", longer_side=26).predict(rgb)
    assert not torch.equal(other.network_logits, want.network_logits)


def test_a_longer_side_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="longer_side must be at least 1 pixel; got 0"):
        pipeline(longer_side=0)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("v1-vgg16-largefov", "deeplab-v1-largefov"),
        ("v1-vgg16-msc", "deeplab-v1-msc"),
        ("v1-vgg16-msc-largefov", "deeplab-v1-msc-largefov"),
        ("v2-vgg16-aspp-l", "deeplab-v2-vgg16"),
        ("v2-resnet101-aspp", "deeplab-v2-resnet101"),
    ],
)
def test_the_crf_is_the_variants(name: str, preset: str) -> None:
    crf = pipeline(name).crf
    assert crf is not None
    assert repr(crf) == repr(DenseCRF.from_preset(preset, CLASSES))
    assert set(crf.normalizations) == {"after"}
    assert crf.iterations == 10


def test_other_crfs_and_none() -> None:
    image = photo(HEIGHT, WIDTH)
    (without,) = pipeline(crf=None).predict(image)
    torch.testing.assert_close(without.logits, without.network_logits, rtol=0, atol=0)
    named = pipeline(crf="deeplab-v1-largefov-pydensecrf").crf
    assert named is not None
    assert set(named.normalizations) == {"symmetric"}
    own = DenseCRF(CLASSES, (Gaussian(3, 3),), 2)
    assert pipeline(crf=own).crf is own


def test_the_least_probability_is_that_of_reimplementations() -> None:
    logits = torch.tensor([50.0, 0.0, -50.0]).reshape(1, 3, 1, 1).expand(1, 3, 8, 8).contiguous()
    images = batch(0, size=(8, 8))
    clipped = pipeline(min_probability=1e-5)
    assert clipped.crf is not None
    want = clipped.crf(
        torch.log(torch.tensor([1.0, 1e-5, 1e-5])).reshape(1, 3, 1, 1).expand(1, 3, 8, 8).contiguous(), images
    )
    torch.testing.assert_close(clipped.refine(logits, images), want)
    assert bool((clipped.refine(logits, images) != pipeline().refine(logits, images)).any())


def test_images_of_a_list_do_not_see_each_other() -> None:
    segmenter = pipeline(pad_to=65)
    images = [photo(40, 52), photo(30, 60, seed=1), photo(70, 90, seed=2), photo(40, 52, seed=3)]
    together = segmenter.predict(images)
    assert [tuple(each.labels.shape) for each in together] == [(40, 52), (30, 60), (70, 90), (40, 52)]
    for image, result in zip(images, together, strict=True):
        (alone,) = segmenter.predict(image)
        torch.testing.assert_close(result.logits, alone.logits, rtol=1e-4, atol=1e-4)


def test_padding_to_the_released_size() -> None:
    seen = []
    segmenter = SegmentationPipeline(small_model(), crf=None)
    segmenter.network.register_forward_pre_hook(lambda _module, inputs: seen.append(tuple(inputs[0].shape)))
    segmenter.predict([photo(40, 52), photo(33, 514)])
    assert seen == [(1, 3, 513, 513), (1, 3, 513, 521)]


def test_prediction_leaves_the_mode_as_it_is_and_runs_in_evaluation() -> None:
    segmenter = pipeline("v1-vgg16-largefov").train()
    first, second = (segmenter.predict(photo(HEIGHT, WIDTH))[0].logits for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)  # no dropout
    assert segmenter.training
    assert segmenter.network.training
    assert not first.requires_grad


# ---------------------------------------------------------------- images of every kind


RGB = photo(HEIGHT, WIDTH)
GRAY = RGB[:, :, 0]


def as_pil(mode: str) -> Image.Image:
    return Image.fromarray(RGB).convert(mode)


def with_alpha() -> Image.Image:
    return Image.fromarray(np.dstack([RGB, np.full(RGB.shape[:2], 7, np.uint8)]))


SAME_AS_RGB = {
    "uint8 array": lambda: RGB,
    "float array": lambda: RGB.astype(np.float64),
    "array with alpha": lambda: np.dstack([RGB, GRAY]),
    "reversed strides": lambda: RGB[:, :, ::-1].copy()[:, :, ::-1],
    "tensor": lambda: torch.from_numpy(RGB).permute(2, 0, 1),
    "float tensor": lambda: torch.from_numpy(RGB).permute(2, 0, 1).float(),
    "batch of one": lambda: torch.from_numpy(RGB).permute(2, 0, 1)[None],
    "PIL": lambda: Image.fromarray(RGB),
    "PIL with alpha": with_alpha,
    "list": lambda: [RGB],
}
SAME_AS_GRAY = {
    "array": lambda: GRAY,
    "L": lambda: Image.fromarray(GRAY),
    "LA": lambda: Image.merge("LA", [Image.fromarray(GRAY), Image.new("L", (WIDTH, HEIGHT), 3)]),
    "I;16": lambda: Image.fromarray(GRAY.astype(np.uint16)),
    "I": lambda: Image.fromarray(GRAY.astype(np.int32)),
    "F": lambda: Image.fromarray(GRAY.astype(np.float32)),
    "palette": lambda: gray_palette(),
    "three equal": lambda: np.repeat(GRAY[:, :, None], 3, axis=2),
}


def gray_palette() -> Image.Image:
    image = Image.fromarray(GRAY).convert("P")
    image.putpalette([level for level in range(256) for _ in range(3)])
    return image


@pytest.mark.parametrize("kind", SAME_AS_RGB)
def test_colour_pictures(kind: str) -> None:
    segmenter = pipeline(crf=None)
    want, (got,) = segmenter.predict(RGB)[0].logits, segmenter.predict(SAME_AS_RGB[kind]())
    torch.testing.assert_close(got.logits, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", SAME_AS_GRAY)
def test_gray_pictures(kind: str) -> None:
    segmenter = pipeline(crf=None)
    want, (got,) = segmenter.predict(np.dstack([GRAY] * 3))[0].logits, segmenter.predict(SAME_AS_GRAY[kind]())
    torch.testing.assert_close(got.logits, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "HSV"])
def test_other_modes_are_what_pillow_makes_of_them(mode: str) -> None:
    segmenter, image = pipeline(crf=None), as_pil(mode)
    (got,), (want,) = segmenter.predict(image), segmenter.predict(np.array(image.convert("RGB")))
    torch.testing.assert_close(got.logits, want.logits, rtol=1e-5, atol=1e-5)


def test_pictures_on_their_side_are_turned_upright() -> None:
    image = Image.fromarray(RGB).rotate(90, expand=True)
    image.getexif()[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    segmenter = pipeline(crf=None)
    (got,), (want,) = segmenter.predict(image), segmenter.predict(RGB)
    torch.testing.assert_close(got.logits, want.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["v1-vgg16-msc", "v2-resnet101-aspp"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1)])
def test_tiny_images(name: str, size: tuple[int, int]) -> None:
    (result,) = pipeline(name).predict(photo(*size))
    assert result.labels.shape == size
    torch.testing.assert_close(result.probabilities.sum(0), torch.ones(size), rtol=1e-5, atol=1e-5)


BAD = {
    "nothing": ([], ValueError, "images must hold at least one image"),
    "text": (["cat.jpg"], TypeError, r"images\[0\] must be a PIL image, a NumPy array or a tensor; got str"),
    "channels first": (np.zeros((3, 9, 9), np.uint8), ValueError, r"must have shape \(H, W\).*np\.moveaxis"),
    "channels last": (torch.zeros(9, 9, 3), ValueError, r"must have shape \(3, H, W\).*movedim\(-1, 0\)"),
    "two channels": ([RGB, np.zeros((9, 9, 2), np.uint8)], ValueError, r"images\[1\] must have shape"),
    "empty": (np.zeros((0, 9, 3), np.uint8), ValueError, "not be empty"),
    "not a number": (np.full((9, 9, 3), np.nan), ValueError, "must be finite"),
    "complex": (np.zeros((9, 9, 3), complex), TypeError, "must hold real numbers"),
    "bool": (torch.zeros(3, 9, 9, dtype=torch.bool), TypeError, "must hold real numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_images_are_named(case: str) -> None:
    images, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        pipeline(crf=None).predict(images)  # type: ignore[arg-type]


OTHER_RANGES = {
    "0..1": (RGB / 255.0, (0, 1)),
    "0..1 tensor": (torch.from_numpy(RGB / 255.0).permute(2, 0, 1), (0, 1)),
    "uint16 array": (RGB.astype(np.uint16) * 257, (0, 65535)),
    "uint16 tensor": (torch.from_numpy(RGB.astype(np.uint16) * 257).permute(2, 0, 1), (0, 65535)),
    "12 bits": (RGB.astype(np.int16) * 16, (0, 4080)),
    "I;16": (Image.fromarray(GRAY.astype(np.uint16) * 257), (0, 65535)),
    "I": (Image.fromarray(GRAY.astype(np.int32) * 257), (0, 65535)),
    "F": (Image.fromarray(GRAY.astype(np.float32) / 255), (0, 1)),
}


@pytest.mark.parametrize("kind", OTHER_RANGES)
def test_images_of_another_range_need_it(kind: str) -> None:
    image, image_range = OTHER_RANGES[kind]
    with pytest.raises(ValueError, match=r"images\[0\] must be in 0\.\.255.*image_range=\(0, "):
        pipeline(crf=None).predict(image)
    same = np.dstack([GRAY] * 3) if isinstance(image, Image.Image) else RGB
    (want,) = pipeline(crf=None).predict(same)
    (got,) = pipeline(crf=None, image_range=image_range).predict(image)
    torch.testing.assert_close(got.logits, want.logits, rtol=1e-4, atol=1e-4)


def test_a_batch_of_another_range_needs_it() -> None:
    batch = torch.from_numpy(RGB).permute(2, 0, 1)[None]
    with pytest.raises(ValueError, match=r"images must be in 0\.\.255.*image_range=\(0, 1\)"):
        pipeline()(batch / 255.0)
    got, want = pipeline(image_range=(0, 1))(batch / 255.0), pipeline()(batch)
    assert (got.argmax(1) == want.argmax(1)).float().mean() > 0.99


def test_dark_images_of_a_known_range_reach_the_crf() -> None:
    """The CRF does not judge the range again, which a dark image alone does not tell."""
    dark = (RGB // 100).astype(np.float32)
    (want,) = pipeline().predict(dark.astype(np.uint8))
    (got,) = pipeline(image_range=(0, 255)).predict(dark)
    assert torch.equal(got.logits, want.logits)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="min_probability must lie in"):
        pipeline(min_probability=1)
    with pytest.raises(ValueError, match="preset must be one of"):
        pipeline(crf="gauss")


# ---------------------------------------------------------------- training, compiling, exporting


def halves(count: int) -> tuple[Any, Any]:
    """Images of two flat regions with an oblique edge, and which side each pixel is on."""
    rows, columns = torch.meshgrid(torch.arange(33), torch.arange(41), indexing="ij")
    labels = torch.stack([(rows + 2 * columns > 40 + 8 * i).long() for i in range(count)])
    noise = torch.rand(count, 3, 33, 41, generator=torch.Generator().manual_seed(0)) * 20
    return labels[:, None] * torch.tensor([120.0, 60.0, -40.0])[:, None, None] + 80 + noise, labels


def test_training_through_the_crf_lowers_the_loss() -> None:
    torch.manual_seed(0)
    images, labels = halves(4)
    crf = DenseCRF(CLASSES, (Gaussian(3, 1), Bilateral(20, 20, 1)), 3, trainable=("weights", "bandwidths"))
    segmenter = pipeline(crf=crf).train()
    optimiser = torch.optim.Adam(segmenter.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(segmenter(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(
        parameter.grad is not None and bool(torch.isfinite(parameter.grad).all())
        for parameter in segmenter.parameters()
    )
    assert bool((crf.weights.grad != 0).all())


def test_training_of_the_network_alone_lowers_the_papers_loss() -> None:
    torch.manual_seed(0)
    images, labels = halves(4)
    model = small_model("v2-compact-aspp", multi_scale=True).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    prepared = SegmentationPipeline(model, crf=None).preprocess(images)
    losses = []
    for _ in range(10):
        loss = training_loss(model.scores(prepared), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.usefixtures("whole_graphs")
@pytest.mark.filterwarnings("ignore")  # of torch's own, which differ from version to version
@pytest.mark.parametrize("name", ["v2-compact-aspp", "v1-vgg16-msc-largefov"])
def test_compiles_whole(name: str) -> None:
    torch.compiler.reset()
    segmenter, images = pipeline(name), batch(0, 1)
    compiled = torch.compile(segmenter, fullgraph=True, backend="aot_eager", dynamic=False)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), segmenter(images), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # of torch's own, which differ from version to version
@pytest.mark.parametrize("name", ["v2-resnet101-aspp", "v1-vgg16-largefov"])
def test_exports(name: str) -> None:
    segmenter, images = pipeline(name).eval(), batch(0, 1)
    exported = torch.export.export(segmenter, (images,))
    other = batch(2, 3)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(other), segmenter(other), rtol=1e-4, atol=1e-4)
    network = torch.export.export(segmenter.network, (segmenter.preprocess(images),)).module()
    with torch.no_grad():
        want = segmenter.network(segmenter.preprocess(other))
        got = network(segmenter.preprocess(other))
    assert list(got) == list(want)
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-4)


def test_the_network_may_be_elsewhere_than_the_crf() -> None:
    """The CRF's device decides where it runs: tensors come to it and go back."""
    segmenter = pipeline()
    segmenter.network.to("meta")
    assert segmenter.crf is not None
    segmenter.crf.to("cpu")
    logits = torch.zeros(1, CLASSES, 8, 8)
    assert segmenter.refine(logits, batch(0, size=(8, 8))).device.type == "cpu"


def test_the_crf_runs_on_the_cpu_where_it_has_no_kernels() -> None:
    segmenter = pipeline()
    segmenter.run_on(torch.device("meta"))
    assert next(segmenter.network.parameters()).device.type == "meta"
    assert segmenter.crf is not None
    assert segmenter.crf.weights.device.type == "cpu"


def test_predict_runs_a_fused_network() -> None:
    """The same scores as of the network itself, also after the weights have changed, and never those of before."""
    fused = pipeline(crf=None)
    plain = SegmentationPipeline(fused.network, None, pad_to=1, fused=False)
    images = photo(HEIGHT, WIDTH)
    for _ in range(2):
        assert fused.inference_network is not fused.network
        assert fused.inference_network is fused.inference_network, "made once"
        got, want = fused.predict(images)[0].logits, plain.predict(images)[0].logits
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
        with torch.no_grad():
            fused.network.backbone.conv1.weight.mul_(-1)
    assert plain.inference_network is plain.network
    assert "_kept" not in fused.state_dict()
    assert fused.train().inference_network is fused.network


def test_networks_that_cannot_be_fused_run_as_they_are() -> None:
    segmenter = SegmentationPipeline(small_model("v1-vgg16-msc"), None, pad_to=1)
    assert segmenter.inference_network is segmenter.network
