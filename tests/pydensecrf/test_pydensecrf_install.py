"""`install_as_pydensecrf`: unchanged scripts reach the drop-in. Each case runs in an interpreter of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import samples

UNCHANGED_SCRIPT = """
import numpy as np
import pydensecrf
import pydensecrf.densecrf as dcrf
import pydensecrf.utils as u
from pydensecrf import eigen
from pydensecrf.densecrf import DIAG_KERNEL, NORMALIZE_SYMMETRIC, DenseCRF2D
from pydensecrf.utils import create_pairwise_bilateral, create_pairwise_gaussian, unary_from_labels, unary_from_softmax

image = np.random.RandomState(0).randint(0, 255, (6, 8, 3)).astype(np.uint8)
labels = np.arange(48).reshape(6, 8) % 4
d = dcrf.DenseCRF2D(image.shape[1], image.shape[0], 3)
d.setUnaryEnergy(unary_from_labels(labels, 3, gt_prob=0.7, zero_unsure=True))
d.addPairwiseGaussian(sxy=(3, 3), compat=3, kernel=dcrf.DIAG_KERNEL, normalization=dcrf.NORMALIZE_SYMMETRIC)
d.addPairwiseBilateral(sxy=(80, 80), srgb=(13, 13, 13), rgbim=image, compat=10, kernel=DIAG_KERNEL,
                       normalization=NORMALIZE_SYMMETRIC)
feats = u.create_pairwise_bilateral(sdims=(10, 10), schan=0.01, img=image, chdim=2)
d.addPairwiseEnergy(feats, compat=10, kernel=dcrf.DIAG_KERNEL, normalization=dcrf.NORMALIZE_SYMMETRIC)
Q, tmp1, tmp2 = d.startInference()
for i in range(5):
    d.klDivergence(Q)
    d.stepInference(Q, tmp1, tmp2)
MAP = np.argmax(Q, axis=0).reshape(image.shape[:2])
assert MAP.max() < 3 and np.array(d.inference(5)).reshape((3, 6, 8)).shape == (3, 6, 8)
assert isinstance(Q, eigen.MatrixXf)
assert dcrf.DenseCRF2D is DenseCRF2D
print("reached", dcrf.DenseCRF2D.__module__, pydensecrf.__name__)
"""


def _fake_pydensecrf(folder: Path) -> str:
    """A package of that name on disk; returns the folder to put on PYTHONPATH."""
    package = folder / "pydensecrf"
    package.mkdir()
    (package / "__init__.py").write_text("real = True\n")
    (package / "densecrf.py").write_text("real = True\n")
    return str(folder)


@pytest.mark.parametrize("on_disk", [False, True])
def test_unchanged_script(tmp_path: Path, on_disk: bool) -> None:
    path = _fake_pydensecrf(tmp_path) if on_disk else str(tmp_path)
    install = "import deeplab_crf\ndeeplab_crf.install_as_pydensecrf()\ndeeplab_crf.install_as_pydensecrf()\n"
    done = samples.run_python(install + UNCHANGED_SCRIPT, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["reached", "deeplab_crf.pydensecrf.densecrf", "deeplab_crf.pydensecrf"]


def test_modules_are_the_same_objects_and_nothing_else_is_reachable() -> None:
    script = """
import sys
import deeplab_crf, deeplab_crf.pydensecrf.densecrf
deeplab_crf.install_as_pydensecrf()
import pydensecrf.densecrf, pydensecrf.utils, pydensecrf.eigen
for name in ("densecrf", "utils", "eigen"):
    assert sys.modules["pydensecrf." + name] is sys.modules["deeplab_crf.pydensecrf." + name]
try:
    import pydensecrf.nothing
except ModuleNotFoundError as error:
    print(error)
assert "torch" not in sys.modules
"""
    done = samples.run_python(script)
    assert done.returncode == 0, done.stderr
    assert "No module named 'pydensecrf.nothing'" in done.stdout


@pytest.mark.parametrize("imported", ["pydensecrf", "pydensecrf.densecrf"])
def test_after_the_real_one_was_imported(tmp_path: Path, imported: str) -> None:
    script = f"""
import {imported}
import sys
import deeplab_crf
before = dict(sys.modules)
try:
    deeplab_crf.install_as_pydensecrf()
except RuntimeError as error:
    print(error)
assert sys.modules["pydensecrf"].real
assert "pydensecrf.utils" not in sys.modules
"""
    done = samples.run_python(script, PYTHONPATH=_fake_pydensecrf(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "pydensecrf is already imported, from " + str(tmp_path) in done.stdout
    assert "Restart the process and call install_as_pydensecrf() before anything imports pydensecrf" in done.stdout
