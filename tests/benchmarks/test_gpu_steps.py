"""The steps of the GPU's report, with fakes for what only a GPU has: wrong results caught, commands as they should be. Its
clock and kernels: see test_gpu_kernels.py."""

from __future__ import annotations

import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from devices import running_on

from benchmarks import cases
from benchmarks.gpu import (
    agreement,
    build,
    cuda_tests,
    peers,
    problems,
    sanitizers,
    truncated_crf,
)
from benchmarks.gpu.context import Context
from benchmarks.gpu.section import DONE, FAILED, NOT_RUN, Section

ROOT = Path(__file__).resolve().parents[2]


def context(folder: Path, device: str = "cpu", build: bool = False) -> Context:
    return Context(device, cases.SYNTHETIC, build, str(folder), time.time() + 60)


# ----------------------------------------------------------------------------------------------------------------- build, tests
def test_the_package_is_installed_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.INSTALL[1:4] == ("-m", "pip", "install")
    assert {"--no-build-isolation", "--no-deps", str(ROOT)} < set(build.INSTALL)
    monkeypatch.setattr(build, "INSTALL", (sys.executable, "-c", "import os; print(os.environ['CUDAARCHS'])"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(build, "installed", lambda folder: {"version": "1", "path": "p", "cuda": engine})
    engine = {"built": True, "usable": True, "compiler": "nvcc", "architectures": "90"}
    section = build.measure(context(tmp_path, "cuda", build=True))
    assert section.bad == []
    assert section.notes == ["deeplab-crf 1, CUDA engine by nvcc for 90, from p."]
    engine["usable"] = False
    assert build.measure(context(tmp_path, "cuda", build=True)).bad == ["Build: the CUDA engine is usable"]
    assert build.architecture(context(tmp_path, "cuda")) == "90"


def test_what_is_installed_is_looked_up_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import deeplab_crf

    found = build.installed(str(tmp_path))
    assert found["path"] == deeplab_crf.__file__
    assert found["compiler"] == deeplab_crf.native_info()["compiler"]
    monkeypatch.setattr(build, "LOOK", "raise ImportError('undefined symbol')")
    with pytest.raises(RuntimeError, match=r"(?s)cannot be imported: .*undefined symbol"):
        build.installed(str(tmp_path))


def test_a_build_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "INSTALL", (sys.executable, "-c", "import sys; print('no nvcc'); sys.exit(3)"))
    section = build.measure(context(tmp_path, build=True))
    assert (section.status, section.reason, section.output) == (FAILED, "exit status 3", ["no nvcc"])


TESTS = """
import pytest
def test_good(): pass
def test_bad(): assert False
@pytest.fixture
def broken(): raise ValueError
def test_broken(broken): pass
@pytest.mark.skip(reason="no")
def test_skipped(): pass
"""


def test_tests_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuda_tests.SELECTION[:2] == ("-m", "cuda")
    monkeypatch.setattr(cuda_tests, "CONFIGURATION", ("-c", "/dev/null", "--rootdir", str(tmp_path), "-q"))
    monkeypatch.setattr(cuda_tests, "REHEARSED", (str(tmp_path / "test_some.py"),))
    (tmp_path / "test_some.py").write_text(TESTS)
    section = cuda_tests.measure(context(tmp_path))
    assert section.status == FAILED
    assert section.checks[0].found == "1 passed, 2 failed, 1 skipped"
    assert not section.checks[0].good
    assert section.notes == ["Failed: test_some::test_bad", "Failed: test_some::test_broken"]
    (tmp_path / "test_some.py").write_text("import pytest\n@pytest.mark.skip(reason='no')\ndef test_skipped(): pass\n")
    section = cuda_tests.measure(context(tmp_path))
    assert (section.status, section.checks[0].good) == (DONE, False)  # nothing ran, so nothing is known
    (tmp_path / "test_some.py").write_text("def test_good(): pass\n")
    assert cuda_tests.measure(context(tmp_path)).bad == []
    (tmp_path / "test_some.py").write_text("import no_such_module\n")
    assert cuda_tests.measure(context(tmp_path)).status == FAILED


# ------------------------------------------------------------------------------------------------------------------- sanitizers
MEMCHECK = "========= ERROR SUMMARY: {} errors"
RACECHECK = "========= RACECHECK SUMMARY: {} hazards displayed ({} errors, 0 warnings)"


def fake_sanitizer(folder: Path, errors: int, hazards: int, code: int) -> None:
    path = folder / sanitizers.SANITIZER
    path.write_text(
        f'#!/bin/sh\necho "$@"\necho "allocation caching: $PYTORCH_NO_CUDA_MEMORY_CACHING"\n'
        f'case "$2" in memcheck) echo "{MEMCHECK.format(errors)}";; *) echo "{RACECHECK.format(hazards, hazards)}";; esac\n'
        f"exit {code}\n"
    )
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("errors", "hazards", "code", "good"),
    [(0, 0, 0, [True, True]), (2, 0, 9, [False, False]), (0, 1, 0, [True, False]), (0, 0, 1, [False, False])],
)
def test_sanitizers(
    errors: int, hazards: int, code: int, good: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_sanitizer(tmp_path, errors, hazards, code)
    monkeypatch.setenv("PATH", str(tmp_path))
    section = sanitizers.measure(context(tmp_path, "cuda"))
    assert [(check.name, check.good) for check in section.checks] == list(zip(sanitizers.TOOLS, good, strict=True))
    command, caching = section.data["memcheck"]["lines"][:2]
    assert "--tool memcheck --kernel-name kns=deeplab_crf" in command
    assert "-m cuda -k" in command
    assert caching.endswith(": 1")
    assert section.data["memcheck"]["findings"] == errors


def test_no_sanitizer_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sanitizers, "USUAL_PLACE", str(tmp_path / "none"))
    section = sanitizers.measure(context(tmp_path, "cuda"))
    assert (section.status, section.reason) == (NOT_RUN, "compute-sanitizer was not found")
    assert section.bad == []


# -------------------------------------------------------------------------------------------------------------------- agreement
def test_bits_that_differ_are_seen() -> None:
    one = torch.rand(1, 3, 4, 5)
    other = one.clone()
    assert agreement.same_bits(one.transpose(2, 3), other.transpose(2, 3)) == ("the same bits", "the same bits", True)
    other[0, 0, 0, 0] = torch.nextafter(other[0, 0, 0, 0], torch.tensor(2.0))
    assert agreement.same_bits(one, other)[0] == "1 entries differ"
    assert not agreement.same_bits(one, other)[2]
    one[0, 0, 0, 0] = torch.nan
    assert agreement.same_bits(one, one.clone()) == ("the same bits, not all finite", "the same bits", False)


@pytest.mark.parametrize(("fault", "bad"), [(0.0, 0), (2e-4, 5)])
def test_wrong_results_fail(fault: float, bad: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose answers are off, the second time that it is asked more than the first."""
    right, calls = agreement.inferred, iter(range(100))
    monkeypatch.setattr(agreement, "inferred", lambda *given: right(*given) * (1 - fault * (next(calls) % 2)))
    section = agreement.measure(context(tmp_path))
    assert len(section.bad) == bad
    assert len(section.checks) == 13


def test_the_emulated_engine_agrees(emulated: types.ModuleType, tmp_path: Path) -> None:
    """The steps themselves, on the kernels that a GPU would run."""
    given = context(tmp_path)
    problem = problems.make_problem(given, cases.Case(20, 15, 5, 2, (3, 3), (80, 13, 10)))
    want = problems.layer_for(given, problem)(problem.logits, problem.image)
    section = Section("Agreement")
    with running_on("emulated", sys.modules[__name__], lambda: emulated):
        agreement.check_probabilities(section, given, problem)
        agreement.check_bits(section, given, problem)
        agreement.check_batch(section, given, problem.case, 3)
        agreement.check_small_bound(section, given, problem)
        got = problems.layer_for(given, problem, bounded=True)(problem.logits, problem.image)
    assert section.bad == []
    assert len(section.checks) == 6
    assert not torch.equal(got, want)  # it was another engine
    torch.testing.assert_close(got.exp(), want.exp(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("reports", [True, False])
def test_a_bound_that_is_too_small_has_to_be_reported(
    reports: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Layer:
        def to(self, device: str) -> Layer:
            return self

        def __call__(self, *arguments: Any) -> None:
            pass

        def check(self) -> None:
            if reports:
                raise ValueError("max_vertices must be at least 100; got 16")

    made: list[dict[str, Any]] = []
    monkeypatch.setattr(agreement, "make_layer", lambda case, **options: made.append(options) or Layer())
    problem = problems.make_problem(context(tmp_path), problems.TINY_DENSE)
    section = Section("Agreement")
    agreement.check_small_bound(section, context(tmp_path), problem)
    assert made == [{"max_vertices": 16}]
    assert section.checks[0].good == reports


# ----------------------------------------------------------------------------------------------------------------------- inputs
def test_vertices_are_counted_over_the_batch(tmp_path: Path) -> None:
    one = problems.make_problem(context(tmp_path), problems.TINY_DENSE)
    two = problems.make_problem(context(tmp_path), problems.TINY_DENSE, 2)
    assert two.logits.shape == (2, 5, 33, 44)
    assert torch.equal(two.logits[:1], one.logits)
    assert torch.equal(two.image[1], one.image[0].roll((31, 31), (1, 2)))
    assert all(both > single for both, single in zip(two.vertices, one.vertices, strict=True))
    assert two.bound > max(two.vertices)


def test_a_layer_is_given_a_bound_where_it_must_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    layer = types.SimpleNamespace(to=lambda device: device)
    monkeypatch.setattr(problems, "make_layer", lambda case, **options: given.append(options) or layer)
    problem = problems.Problem(problems.TINY_DENSE, torch.zeros(1), torch.zeros(1), (50, 100))
    for device in ("cuda", "cpu"):
        here = context(tmp_path, device)
        assert problems.layer_for(here, problem, bounded=True, trainable=()) == device
        problems.layer_for(here, problem)
    assert given == [{"trainable": (), "max_vertices": 106}, {"max_vertices": None}] * 2


def test_the_filters_points_are_those_of_its_peer(tmp_path: Path) -> None:
    features, values, vertices = problems.filter_points(context(tmp_path))
    assert features.shape == (1, 500, 6)
    assert values.shape == (1, 500, 3)
    assert vertices > 6 * 500
    assert features[0].amax(dim=0).tolist() == pytest.approx([32, 32, 21.3, 21.3, 21.3, 0], rel=0.05)
    assert problems.FILTER_POINTS == 196608


# ------------------------------------------------------------------------------------------------------------------------ peers
def test_the_truncated_crf_is_what_it_says() -> None:
    """Against a loop over pixels and neighbours."""
    case = cases.Case(9, 8, 3, 2, (3, 3), (8, 13, 10))
    rng = np.random.default_rng(0)
    logits, image = rng.normal(size=(3, 8, 9)), rng.integers(0, 255, (3, 8, 9))
    q = np.exp(logits) / np.exp(logits).sum(axis=0)
    for _ in range(case.iterations):
        energy = logits.copy()
        for y, x in np.ndindex(8, 9):
            sums = np.zeros((2, 4))
            for v, u in np.ndindex(8, 9):
                if (v, u) == (y, x) or max(abs(v - y), abs(u - x)) > 3:
                    continue
                space, colour = (v - y) ** 2 + (u - x) ** 2, ((image[:, v, u] - image[:, y, x]) ** 2).sum()
                gaussian, bilateral = np.exp(-space / 18), np.exp(-space / 128 - colour / 338)
                for row, kernel in enumerate((gaussian, bilateral)):
                    sums[row] += kernel * np.append(q[:, v, u], 1)
            for row, weight in enumerate((3, 10)):
                energy[:, y, x] += weight * sums[row, :3] / max(sums[row, 3], 1e-20)
        q = np.exp(energy) / np.exp(energy).sum(axis=0)
    got = truncated_crf.truncated_crf(case, torch.tensor(logits)[None], torch.tensor(image)[None]).exp()[0]
    np.testing.assert_allclose(got.numpy(), q, atol=1e-9)


def test_peers_are_called_as_they_want_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that breaks or is not there is said to be so, the others being timed."""
    seen: dict[str, Any] = {}

    class PHLFilter:
        @staticmethod
        def apply(values: Any, features: Any) -> None:
            seen["monai"] = (values.shape, features.shape)

    class PermutohedralLattice:
        @classmethod
        def build(cls, positions: Any) -> PermutohedralLattice:
            seen["warpconvnet"] = positions.shape
            raise RuntimeError("CUDA error: no kernel image\nmore")

    for name, contents in {
        "monai": {},
        "monai._C": {},
        "monai.networks.layers.filtering": {"PHLFilter": PHLFilter},
        "warpconvnet": {},
        "warpconvnet.nn.functional.permutohedral": {"PermutohedralLattice": PermutohedralLattice},
    }.items():
        module = types.ModuleType(name)
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(peers, "find_engine", lambda name: None)
    section = peers.measure(context(tmp_path))
    assert seen == {"monai": ((1, 3, 33 * 44), (1, 5, 33 * 44)), "warpconvnet": (500, 6)}
    assert [row[0] for row in section.tables[0].rows] == ["truncated CRF in plain torch", "MONAI PHLFilter"]
    assert "WarpConvNet: not run to the end, RuntimeError: CUDA error: no kernel image" in section.notes
    assert "pydensecrf2: not run, it is not installed here." in section.notes
    assert (section.status, section.bad) == (DONE, [])
    monkeypatch.setitem(sys.modules, "monai._C", None)
    section = peers.measure(context(tmp_path))
    assert any(note.startswith("MONAI PHLFilter: not run, it cannot be imported here") for note in section.notes)
