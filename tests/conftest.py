"""Fixtures and hooks of all tests. Their helper modules lie in tests/support."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from dataset_files import write_folder
from emulated import build_emulated, load_emulated
from hypothesis import HealthCheck, settings

# Properties are checked on the same examples every time; a loaded machine is no reason to fail.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


def pytest_configure() -> None:
    """Stops with one clear line where the tests would meet the sources without their compiled module."""
    package = find_spec("deeplab_crf")
    if package is None or find_spec("deeplab_crf._native") is None:
        where = "nowhere" if package is None else f"in {package.origin}, which has no compiled module"
        raise pytest.UsageError(
            f"the tests need deeplab_crf installed; found it {where}. Install it (pip install '.[test]'), and start "
            "them as `pytest`: `python -m pytest` puts the sources before what is installed"
        )


if find_spec("torch") is None:

    class ModuleWithoutTorch(pytest.Module):
        """A test module that is skipped if it cannot be imported without torch."""

        def collect(self) -> Any:
            try:
                return list(super().collect())
            except self.CollectError as error:
                if "torch" in str(error):
                    pytest.skip("needs torch", allow_module_level=True)
                raise

    def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
        """Collect each test file as a `ModuleWithoutTorch`."""
        return ModuleWithoutTorch.from_parent(parent, path=module_path)


def pytest_sessionstart() -> None:
    """Started in the background by a shell, this process has Ctrl-C ignored, and so would those that tests send it to."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """Says which deeplab_crf is tested."""
    package = find_spec("deeplab_crf")
    return f"deeplab_crf: {package.origin if package else None}"


@pytest.fixture(scope="session", autouse=True)
def neutral_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests run in an empty folder. In the repository's root, the `python -c` and `python -m` that some of them start would
    find the sources, which have no compiled module, before the installed package."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("neutral")
    os.chdir(folder)
    yield folder
    os.chdir(before)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that use the fixture `device` run on each of them."""
    if "device" in metafunc.fixturenames:
        from devices import device_names

        alone = metafunc.definition.get_closest_marker("cpu_only") is not None
        metafunc.parametrize("device", ["cpu"] if alone else device_names(metafunc.config), indirect=True)


@pytest.fixture
def whole_graphs() -> Iterator[None]:
    """Lets torch.compile take operators whose result sizes depend on values into one graph, as users of torch before 2.10 have to
    set it for ``fullgraph=True`` (docs/training.md)."""
    import torch._dynamo

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        yield


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The device to run on, a `Device` of tests/support/devices.py."""
    from devices import running_on

    with running_on(request.param, request.module, lambda: request.getfixturevalue("emulated")) as found:
        yield found


@pytest.fixture(scope="session")
def emulated_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the CUDA engine compiled for the CPU lies."""
    return build_emulated(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(scope="session")
def emulated(emulated_folder: Path) -> ModuleType:
    """The CUDA engine compiled for the CPU."""
    return load_emulated(emulated_folder)


@pytest.fixture
def small_networks() -> Iterator[None]:
    """Every variant with a few channels, and one thread."""
    torch = pytest.importorskip("torch", reason="training needs torch")
    from model_samples import narrow_variants

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with narrow_variants():
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photographs to train on and two to validate on, of three classes; nobody writes to it."""
    return write_folder(tmp_path_factory.mktemp("data"))
