"""The sdist and the wheel: what is in them, and that the wheel works where nothing but its dependencies is installed."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement

from deeplab_crf import native_info

ROOT = Path(__file__).resolve().parents[2]
NAME = "deeplab_crf-0.1.0"
PACKAGE_FILES = {".py", ".pyi", ".typed", ".md", ".txt", ".jpg", ".png", ".safetensors"}

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="needs the sources")


def _run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel built from it, by the build tools that are installed: no network."""
    for tool in ("build", "scikit_build_core", "pybind11", "cmake", "ninja"):
        pytest.importorskip(tool, reason=f"needs {tool} (pip install '.[test]')")
    folder = tmp_path_factory.mktemp("dist")
    options = ("--no-isolation", "--skip-dependency-check", "--outdir", folder)
    _run(sys.executable, "-m", "build", *options, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def sdist_files(built: Path) -> set[str]:
    with tarfile.open(built / f"{NAME}.tar.gz") as archive:
        names = [member.name for member in archive.getmembers() if member.isfile()]
    assert all(name.startswith(f"{NAME}/") for name in names)
    return {name.partition("/")[2] for name in names}


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment that has the wheel and the packages it says it needs, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    _run(sys.executable, "-m", "venv", "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    _run(python, "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile", wheel, cwd=folder)
    packages = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))", cwd=folder).strip())
    for name in _needs(wheel):
        _link(importlib.metadata.distribution(name), packages)
    return python


def _needs(wheel: Path) -> list[str]:
    """The names of what is required here without any extra."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = Parser().parsestr(archive.read(f"{NAME}.dist-info/METADATA").decode())
    needs = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    return [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]


def _link(distribution: importlib.metadata.Distribution, packages: Path) -> None:
    """Make an installed distribution visible in another environment."""
    tops = {path.parts[0] for path in distribution.files or [] if path.parts[0] not in ("..", "__pycache__")}
    assert tops, f"{distribution.name} does not list its files"
    for top in tops:
        (packages / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())


def _package_files() -> set[str]:
    """Files of the package in the sources; what is compiled or cached is not source."""
    paths = [path.relative_to(ROOT) for path in (ROOT / "deeplab_crf").rglob("*") if path.is_file()]
    return {path.as_posix() for path in paths if path.suffix in PACKAGE_FILES}


# The CUDA engine is a module of its own, there where nvcc is (test_cmake.py).
MODULES = ["_cuda", "_native"] if native_info()["cuda"]["built"] else ["_native"]


def _module(extension: str) -> str:
    return Path(extension).name.split(".")[0]


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    extensions = {name for name in names if re.fullmatch(r"deeplab_crf/_(native|cuda)\.[\w.-]+\.so", name)}
    assert sorted(_module(name) for name in extensions) == MODULES
    information = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    information |= {f"licenses/deeplab_crf/data/sample/{name}" for name in ("NOTICE.md", "LICENSE-OpenSfM.txt")}
    assert names - extensions == _package_files() | {f"{NAME}.dist-info/{name}" for name in information}
    packed = ("py.typed", "_native.pyi", "data/sample/astronaut.jpg", "data/sample/NOTICE.md")
    for name in (*packed, "data/sample/street.jpg", "models/bundled/street.safetensors", "models/bundled/README.md"):
        assert f"deeplab_crf/{name}" in names


def test_wheel_needs_what_the_package_imports(wheel: Path) -> None:
    older = ["tomli"] if sys.version_info < (3, 11) else []
    assert _needs(wheel) == ["numpy", "pillow", "click", *older]
    assert wheel.stat().st_size < 15_000_000  # of which the bundled network may take 10


def test_sdist_holds_the_sources(sdist_files: set[str]) -> None:
    """Whatever git carries, save for what starts with a dot."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs a git checkout to compare with")
    listed = _run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    wanted = {name for name in listed if not name.startswith(".") and (ROOT / name).exists()}
    assert sdist_files == wanted | {"PKG-INFO"}


def test_sdist_has_no_junk(sdist_files: set[str]) -> None:
    parts = {part for name in sdist_files for part in PurePosixPath(name).parts}
    assert not parts & {".ci", ".git", ".venv", "build", "dist", "__pycache__", "shared"}
    assert not [name for name in sdist_files if name.endswith((".so", ".pyc", ".o", ".whl"))]
    for name in ("csrc/lattice/lattice.h", "cmake/cuda.cmake", "tests/support/oracle.py", "LICENSE", "README.md"):
        assert name in sdist_files


def test_installed_wheel_is_the_wheel_and_works(installed: Path, tmp_path: Path) -> None:
    script = """
import sys, deeplab_crf
assert deeplab_crf.__file__.startswith(sys.prefix), deeplab_crf.__file__
info = deeplab_crf.native_info()
assert info["version"] == deeplab_crf.__version__
for name in deeplab_crf.__all__:
    try:
        getattr(deeplab_crf, name)
    except ImportError as error:
        print(error)
"""
    # Torch is not there: what needs it says so, and all else works.
    needing_torch = _run(installed, "-c", script, cwd=tmp_path).splitlines()
    assert 'DenseCRF needs torch, which is not installed: pip install "deeplab-crf[torch]"' in needing_torch
    assert not [line for line in needing_torch if "needs torch" not in line]
    assert not [line for line in needing_torch if line.split()[0] in ("dense_crf", "PermutohedralLattice", "MeanField")]
    said = _run(installed.with_name("deeplab-crf"), "demo", "-o", "pictures", cwd=tmp_path)
    assert "before_after.png" in said
    assert (tmp_path / "pictures" / "after.png").stat().st_size > 10_000
    assert "not installed" in _run(installed, "-m", "deeplab_crf", "info", cwd=tmp_path)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
@pytest.mark.parametrize("module", MODULES)
def test_extension_links_neither_torch_nor_python_nor_cuda(wheel: Path, tmp_path: Path, module: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".so") and _module(name) == module)
        archive.extract(name, tmp_path)
    dynamic = _run("readelf", "-d", tmp_path / name, cwd=tmp_path)
    libraries = re.findall(r"\(NEEDED\).*\[(.+?)\.so", dynamic)
    # The C and C++ runtimes.
    known = {"libc", "libm", "libpthread", "libdl", "libstdc++", "libc++", "libgcc_s"}
    assert {library for library in libraries if not library.startswith("ld-linux")} <= known
    assert not re.search(r"\((RPATH|RUNPATH)\)", dynamic)
    symbols = _run("readelf", "--dyn-syms", "--wide", tmp_path / name, cwd=tmp_path)
    functions = re.findall(r" FUNC +GLOBAL +DEFAULT +\d+ (\S+)", symbols)
    assert functions == [f"PyInit_{module}"], "everything else is hidden"
