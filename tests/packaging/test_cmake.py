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


CMAKE, NINJA, NVCC = _tool("cmake"), _tool("ninja"), _tool("nvcc")

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


def _built(folder: Path) -> bool:
    """Whether the configured build has the CUDA engine: the module and what says so in the other one."""
    plan = (folder / "build.ninja").read_text()
    assert ("DEEPLAB_CRF_CUDA_BUILT=1" in plan) == ("csrc/lattice/cuda/filter.cu" in plan)
    return "DEEPLAB_CRF_CUDA_BUILT=1" in plan


def test_off_builds_without_cuda(tmp_path: Path) -> None:
    done = _configure(tmp_path, "-DDEEPLAB_CRF_CUDA=OFF")
    assert done.returncode == 0, done.stderr
    assert not _built(tmp_path)


@pytest.mark.skipif(not NVCC, reason="needs nvcc")
@pytest.mark.parametrize("options", [(), ("-DDEEPLAB_CRF_CUDA=ON",)])
def test_cuda_is_built_where_there_is_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.delenv("CUDAARCHS", raising=False)  # .ci/run names one
    done = _configure(tmp_path, *options)
    assert done.returncode == 0, done.stderr
    assert _built(tmp_path)
    plan = (tmp_path / "build.ninja").read_text()
    for architecture in (75, 80, 86, 89, 90):
        assert f"sm_{architecture}" in plan
    assert "code=[compute_90,sm_90]" in plan


@pytest.mark.skipif(not NVCC, reason="needs nvcc")
def test_the_architectures_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDAARCHS", "90-real")
    assert _configure(tmp_path).returncode == 0
    plan = (tmp_path / "build.ninja").read_text()
    assert "sm_90" in plan
    assert "sm_80" not in plan


def test_auto_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDACXX", str(tmp_path / "no-nvcc"))
    done = _configure(tmp_path)
    assert done.returncode == 0, done.stderr
    assert not _built(tmp_path)


def test_on_without_a_compiler_is_refused_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDACXX", str(tmp_path / "no-nvcc"))
    done = _configure(tmp_path, "-DDEEPLAB_CRF_CUDA=ON")
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert (
        "DEEPLAB_CRF_CUDA=ON, but there is no CUDA compiler of version 12.0 or later: install the CUDA toolkit" in said
    )


@pytest.mark.parametrize("value", ["yes", "on", "", "AUTO;ON"])
def test_another_value_is_refused(tmp_path: Path, value: str) -> None:
    done = _configure(tmp_path, f"-DDEEPLAB_CRF_CUDA={value}")
    assert done.returncode != 0
    assert f"DEEPLAB_CRF_CUDA must be AUTO, ON or OFF; got '{value}'" in " ".join(done.stderr.split())
