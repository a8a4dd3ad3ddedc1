"""The CUDA engine compiled for the CPU: the module _emulated, which has the functions of deeplab_crf._cuda and set_thread_order."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str) -> str | None:
    """Beside this interpreter (from the test extra), or anywhere on the path."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def build_emulated(folder: Path) -> Path:
    """The folder with the module and the program emulation_test: what DEEPLAB_CRF_EMULATED names, or else built in ``folder``,
    which takes a quarter of a minute, with the sanitizers that DEEPLAB_CRF_SANITIZE names. Skips where the sources or the tools
    are missing."""
    built = os.environ.get("DEEPLAB_CRF_EMULATED")
    if built:
        return Path(built)
    pybind11 = pytest.importorskip("pybind11", reason="builds the emulated CUDA engine (pip install '.[test]')")
    cmake, ninja = tool("cmake"), tool("ninja")
    if not (cmake and ninja and (ROOT / "CMakeLists.txt").exists()):
        pytest.skip("building the emulated CUDA engine needs the sources, cmake and ninja (pip install '.[test]')")
    configure = [
        *(cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
        *("-DSKBUILD_PROJECT_VERSION=0", "-DDEEPLAB_CRF_CUDA=OFF", "-DDEEPLAB_CRF_EMULATED=ON"),
        *("-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"),
        f"-DDEEPLAB_CRF_SANITIZE={os.environ.get('DEEPLAB_CRF_SANITIZE', '')}",
    ]
    for command in (configure, [cmake, "--build", str(folder), "--target", "emulated"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.fail(f"{' '.join(command)}:\n{done.stdout[-8000:]}{done.stderr[-4000:]}", pytrace=False)
    return folder


def load_emulated(folder: Path) -> ModuleType:
    """Imports the module that `build_emulated` made."""
    (path,) = folder.glob("_emulated*.so")
    spec = spec_from_file_location("_emulated", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
