"""What configuring says about DEEPLAB_CRF_CUDA."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _tool(name: str) -> str | None:
    """Beside this interpreter (from the test extra), or anywhere on the path."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


CMAKE, NINJA = _tool("cmake"), _tool("ninja")

pytestmark = [
    pytest.mark.skipif(not (CMAKE and NINJA), reason="needs cmake and ninja (pip install '.[test]')"),
    pytest.mark.skipif(not (ROOT / "CMakeLists.txt").exists(), reason="needs the sources"),
]


def _configure(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    pybind11 = pytest.importorskip("pybind11")
    command = [
        str(CMAKE),
        *("-S", str(ROOT), "-B", str(folder), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={NINJA}"),
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        "-DSKBUILD_PROJECT_VERSION=0.1.0",
        *options,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("options", [(), ("-DDEEPLAB_CRF_CUDA=AUTO",), ("-DDEEPLAB_CRF_CUDA=OFF",)])
def test_builds_without_cuda(tmp_path: Path, options: tuple[str, ...]) -> None:
    done = _configure(tmp_path, *options)
    assert done.returncode == 0, done.stderr
    assert "DEEPLAB_CRF_CUDA_BUILT=0" in (tmp_path / "build.ninja").read_text()


def test_cuda_on_is_refused_with_the_cure(tmp_path: Path) -> None:
    done = _configure(tmp_path, "-DDEEPLAB_CRF_CUDA=ON")
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert "DEEPLAB_CRF_CUDA=ON, but this version has no CUDA kernels yet: build with AUTO or OFF" in said


@pytest.mark.parametrize("value", ["yes", "on", "", "AUTO;ON"])
def test_another_value_is_refused(tmp_path: Path, value: str) -> None:
    done = _configure(tmp_path, f"-DDEEPLAB_CRF_CUDA={value}")
    assert done.returncode != 0
    assert f"DEEPLAB_CRF_CUDA must be AUTO, ON or OFF; got '{value}'" in " ".join(done.stderr.split())
