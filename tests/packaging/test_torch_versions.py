"""The versions of torch that are promised are those that the suite was run on, in every place that names them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import samples

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not (ROOT / ".github").exists(), reason="not in a checkout")


def found(pattern: str, path: str) -> list[str]:
    return re.findall(pattern, (ROOT / path).read_text(), flags=re.MULTILINE)


def test_the_oldest_version_is_the_one_that_was_run() -> None:
    (floor,) = found(r'^torch = \["torch>=([\d.]+)"', "pyproject.toml")
    (pinned,) = found(r"^torch==([\d.]+)$", "constraints.txt")
    oldest, middle, newest = found(r"^\| (2\.[\d.]+) \|", "docs/development.md")
    assert oldest.startswith(f"{floor}.")
    assert middle == pinned
    assert found(r"^        torch: \[(.*)\]$", ".github/workflows/tests.yml") == [f'"{oldest}"']
    assert found(r"torch==([\d.]+)/", ".github/workflows/tests.yml") == [newest]
    assert found(r"any torch ≥ ([\d.]+) that", "README.md") == [floor]


def test_an_older_version_is_refused_with_what_to_do() -> None:
    pytest.importorskip("torch", reason="the operators need torch")
    code = "import torch; torch.__version__ = '2.5.1+cu124'; from deeplab_crf import DenseCRF"
    done = samples.run_python(code)
    assert done.returncode != 0
    assert "deeplab_crf needs torch 2.6 or later; found 2.5.1+cu124. Update it: pip install" in done.stderr


def test_the_check_and_the_requirement_are_the_same() -> None:
    pytest.importorskip("torch", reason="the operators need torch")
    from deeplab_crf.ops.library import OLDEST_TORCH

    assert found(r'"torch>=([\d.]+)"', "pyproject.toml") == [".".join(map(str, OLDEST_TORCH))]
