"""``deeplab-crf info``, ``bench``, ``demo``, and the two ways to start the command."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samples import run_python

import deeplab_crf
from deeplab_crf.benchmark import crf as benchmark
from deeplab_crf.cli import main
from deeplab_crf.data.sample import ASTRONAUT, COARSE_LABELS

TINY = ["bench", "--size", "64x48", "--classes", "3", "--iterations", "2", "--repeats", "1"]


def test_info_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert set(facts) == {"native", "python", "platform", "packages"}
    assert facts["native"] == json.loads(json.dumps(deeplab_crf.native_info()))
    assert set(facts["native"]) >= {"version", "compiler", "cpu", "threads", "cuda"}
    assert set(facts["native"]["cpu"]) >= {"detected", "active", "compiled"}
    assert set(facts["native"]["cuda"]) >= {"built", "usable", "why", "cure"}
    assert facts["packages"]["numpy"] == np.__version__
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (facts["packages"]["torch"] is None) == (importlib.util.find_spec("torch") is None)


def test_info_text_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    native = deeplab_crf.native_info()
    for word in (native["version"], native["compiler"], f"{native['cpu']['active']} in use", np.__version__, "torch"):
        assert word in said
    if not native["cuda"]["usable"]:
        assert native["cuda"]["cure"] in said


def test_the_command_never_imports_torch() -> None:
    script = "import sys; from deeplab_crf.cli import main; main(['info']); assert 'torch' not in sys.modules"
    done = run_python(script)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["info", "--json"], ["--help"], ["refine", "--help"], ["refine"], ["nonsense"]])
def test_python_m_equals_the_console_script(arguments: list[str]) -> None:
    module = subprocess.run([sys.executable, "-m", "deeplab_crf", *arguments], capture_output=True, text=True)
    script = run_python(
        "import sys; sys.argv[0] = 'deeplab-crf'; from deeplab_crf.cli import main; sys.exit(main())", *arguments
    )
    assert (module.returncode, module.stdout, module.stderr) == (script.returncode, script.stdout, script.stderr)
    assert module.returncode == (0 if len(arguments) > 1 or arguments == ["--help"] else 2)


def test_demo_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "-o", str(tmp_path / "demo")]) == 0
    pictures = {}
    for path in sorted((tmp_path / "demo").iterdir()):
        with Image.open(path) as picture:
            pictures[path.name] = (picture.mode, picture.size)
    with Image.open(ASTRONAUT) as photograph:
        width, height = photograph.size
    assert pictures == {
        "after.png": ("RGB", (width, height)),
        "before.png": ("RGB", (width, height)),
        "before_after.png": ("RGB", (2 * width + 8, height)),
        "labels.png": ("P", (width, height)),
        "street.png": ("RGB", (3 * 1024 + 2 * 8, pictures["street.png"][1][1])),
        "street_labels.png": ("P", (1024, 768)),
    }
    said = capsys.readouterr().out
    by_hand = re.search(r"deeplab-crf (refine .*)", said)
    assert by_hand is not None
    again = tmp_path / "again.png"
    assert main(by_hand[1].replace("OUT.png", str(again)).split()) == 0
    assert again.read_bytes() == (tmp_path / "demo" / "labels.png").read_bytes()


def test_demo_hugs_the_person(tmp_path: Path) -> None:
    """Lone wrong blocks vanish, and the border of the person lies where colours change, which it did not before."""
    assert main(["demo", "-o", str(tmp_path)]) == 0
    with Image.open(ASTRONAUT) as picture:
        image = np.array(picture, dtype=np.float64)
    with Image.open(COARSE_LABELS) as picture:
        before = np.array(picture)
    with Image.open(tmp_path / "labels.png") as picture:
        after = np.array(picture)
    assert set(np.unique(before)) == {0, 1, 2, 3}, "background, person, flag, shuttle"

    def contrast(labels: Any) -> float:
        border = (labels[:, 3:-3] == 1) != (labels[:, 4:-2] == 1)
        return float(np.abs(image[:, 6:] - image[:, :-6]).sum(axis=2)[:, : border.shape[1]][border].mean())

    assert contrast(after) > 2 * contrast(before)
    assert (after[112:160, 208:256] == 1).all(), "the wrong blocks in the face"
    assert (after[32:48, 320:380] == 0).all(), "the wrong blocks in the background"


def test_sample_is_small_and_has_a_notice() -> None:
    assert ASTRONAUT.stat().st_size <= 150_000
    notice = ASTRONAUT.with_name("NOTICE.md").read_text()
    for word in (ASTRONAUT.name, COARSE_LABELS.name, "NASA", "public domain"):
        assert word in notice


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = deeplab_crf.get_num_threads()
    deeplab_crf.set_num_threads(3)
    yield
    deeplab_crf.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_bench_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeplab_crf.cli.bench.find_peer", lambda: None)
    assert main([*TINY, "--size", "48x48", "--threads", "1,2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"native", "repeats", "cases"}
    assert [(case["width"], case["height"]) for case in report["cases"]] == [(64, 48), (48, 48)]
    for case in report["cases"]:
        assert (case["classes"], case["iterations"], case["agreement"]) == (3, 2, None)
        assert [timing["threads"] for timing in case["timings"]] == [1, 2]
        for timing in case["timings"]:
            assert timing["name"] == "deeplab-crf"
            assert timing["speedup"] is None
            assert timing["build_ms"] > 0
            assert timing["inference_ms"] > 0
            assert timing["total_ms"] == pytest.approx(timing["build_ms"] + timing["inference_ms"])
    assert deeplab_crf.get_num_threads() == 3


def test_bench_text_against_a_peer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ours = importlib.import_module("deeplab_crf.pydensecrf.densecrf")
    twin = SimpleNamespace(DenseCRF2D=ours.DenseCRF2D)
    monkeypatch.setattr("deeplab_crf.cli.bench.find_peer", lambda: twin)
    assert main([*TINY, "--threads", "1"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"64x48 +3 +2 +deeplab-crf +1 .* ms +\d+\.\dx\n", said)
    assert re.search(r"64x48 +3 +2 +pydensecrf +1 .* ms\n", said)
    assert "labels equal on 100.000%, probabilities within 0.0e+00" in said


def test_bench_times_nothing_when_results_differ(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = importlib.import_module("deeplab_crf.pydensecrf.densecrf")

    class Other:
        """Ours, with the classes shifted by one."""

        def __init__(self, *size: int) -> None:
            self.crf = ours.DenseCRF2D(*size)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.crf, name)

        def inference(self, iterations: int) -> Any:
            return np.roll(self.crf.inference(iterations), 1, axis=0)

    monkeypatch.setattr("deeplab_crf.cli.bench.find_peer", lambda: SimpleNamespace(DenseCRF2D=Other))
    assert main(TINY) == 1
    said = capsys.readouterr()
    assert re.search(r"Error: deeplab-crf and pydensecrf agree on 0\.000% of the labels only", said.err)
    assert " ms" not in said.out


def test_the_drop_in_is_not_its_own_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = importlib.import_module("deeplab_crf.pydensecrf.densecrf")
    monkeypatch.setitem(sys.modules, "pydensecrf", SimpleNamespace(densecrf=ours))
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", ours)
    assert benchmark.find_peer() is None
