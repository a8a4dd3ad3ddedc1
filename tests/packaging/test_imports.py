"""What is imported when: nothing heavy by the package itself, torch by nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import samples

# Importing torch raises ImportError, as where it is not installed.
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import numpy as np
import deeplab_crf
from deeplab_crf import Bilateral, Gaussian, MeanField, PairwiseKernel, PermutohedralLattice, dense_crf

for name in deeplab_crf.__all__:
    if name != "dense_crf" and deeplab_crf._HOMES[name].startswith(("deeplab_crf.crf.", "deeplab_crf.ops.")):
        try:
            getattr(deeplab_crf, name)
        except ImportError as error:
            assert 'pip install "deeplab-crf[torch]"' in str(error), error
            continue
        raise AssertionError(f"{name} came without torch")
    getattr(deeplab_crf, name)

import deeplab_crf.models
assert "v2-resnet101-aspp" in deeplab_crf.models.VARIANTS
for name in deeplab_crf.models.__all__:
    if name not in ("VARIANTS", "Usage", "Variant", "get_variant"):
        try:
            getattr(deeplab_crf.models, name)
        except ImportError as error:
            assert f'{name} needs torch, which is not installed: pip install "deeplab-crf[torch]"' == str(error), error
            continue
        raise AssertionError(f"{name} came without torch")

generator = np.random.default_rng(0)
image = generator.integers(0, 255, (12, 16, 3), dtype=np.uint8)
scores = generator.normal(size=(4, 12, 16))
kernels = (Gaussian(), Bilateral(), PairwiseKernel(generator.normal(size=(192, 3))))
assert dense_crf(image, logits=scores, kernels=kernels).shape == (4, 12, 16)
assert PermutohedralLattice(generator.normal(size=(50, 3))).filter(np.ones(50)).shape == (50,)

deeplab_crf.install_as_pydensecrf()
import pydensecrf.densecrf as dcrf
from pydensecrf.utils import unary_from_softmax

crf = dcrf.DenseCRF2D(16, 12, 4)
crf.setUnaryEnergy(unary_from_softmax(np.full((4, 12, 16), 0.25)))
crf.addPairwiseGaussian(sxy=3, compat=3)
crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=10)
assert np.argmax(crf.inference(5), axis=0).shape == (192,)

from deeplab_crf.cli import main
assert main(["demo", "-o", sys.argv[1]]) == 0
assert main(["info"]) == 0

from deeplab_crf.data.sample import COARSE_LABELS, ASTRONAUT
for call in (
    lambda: dense_crf(image, logits=scores, device="cuda"),
    lambda: deeplab_crf.pydensecrf.set_device("cuda:1"),
):
    try:
        call()
    except ImportError as error:
        assert "needs torch, which is not installed" in str(error), error
        assert 'pip install "deeplab-crf[torch]"' in str(error), error
    else:
        raise AssertionError("CUDA without torch")
assert main(["refine", str(ASTRONAUT), str(COARSE_LABELS), "-o", sys.argv[1] + "/out.png", "--device", "cuda"]) == 2
"""

ON_THE_CPU = """
import sys
import numpy as np
from deeplab_crf import dense_crf
from deeplab_crf.pydensecrf import densecrf, set_device

scores = np.zeros((4, 12, 16), np.float32)
image = np.zeros((12, 16, 3), np.uint8)
dense_crf(image, logits=scores)
dense_crf(image, logits=scores, device="cpu")
set_device("cpu")
densecrf.DenseCRF2D(16, 12, 4).inference(1)
assert "torch" not in sys.modules
"""


def test_importing_the_package_loads_neither_numpy_nor_torch() -> None:
    script = "import sys, deeplab_crf; print(sorted({'numpy', 'PIL', 'torch', 'click'} & set(sys.modules)))"
    done = samples.run_python(script)
    assert done.stdout.strip() == "[]", done.stderr


def test_everything_works_without_torch(tmp_path: object) -> None:
    done = samples.run_python(WITHOUT_TORCH, str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_the_doors_for_arrays_load_no_torch() -> None:
    done = samples.run_python(ON_THE_CPU)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    done = samples.run_python("import deeplab_crf; deeplab_crf.nothing")
    assert "AttributeError: module 'deeplab_crf' has no attribute 'nothing'" in done.stderr


def test_sources_without_their_compiled_module_are_named(tmp_path: Path) -> None:
    """Python started in the folder of a clone finds the sources before the installed package."""
    package = find_spec("deeplab_crf")
    assert package is not None
    assert package.origin is not None
    shutil.copytree(
        Path(package.origin).parent, tmp_path / "deeplab_crf", ignore=shutil.ignore_patterns("*.so", "data")
    )
    for code in ("import deeplab_crf; deeplab_crf.native_info", "from deeplab_crf.runtime import info"):
        # -S: no installed package, and no import hook of an editable one.
        command = [sys.executable, "-S", "-c", code]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert f"imported from {tmp_path}/deeplab_crf, which holds the sources and no compiled module" in done.stderr
        assert "pip install -e ." in done.stderr
