"""Narrow networks, one thread, and a small data set on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dataset_files import write_folder


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
