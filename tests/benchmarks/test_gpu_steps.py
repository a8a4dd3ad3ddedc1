"""The steps of the GPU's report, with fakes for what only a GPU has: wrong results caught, commands as they should be, bytes
counted right."""

from __future__ import annotations

import re
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the report is about the torch operators")

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # at the end: an installed deeplab_crf comes before the sources

from devices import running_on  # noqa: E402

from benchmarks import cases  # noqa: E402
from benchmarks.gpu import (  # noqa: E402
    agreement,
    build,
    clock,
    cuda_tests,
    facts,
    kernels,
    measure,
    peers,
    problems,
    sanitizers,
    traffic,
    truncated_crf,
)
from benchmarks.gpu.context import Context  # noqa: E402
from benchmarks.gpu.section import DONE, FAILED, NOT_RUN, Section  # noqa: E402


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


# ------------------------------------------------------------------------------------------------------------------------ clock
class FakeDevice:
    """Stands in for torch.cuda: a log of what was asked, and a millisecond between any two events."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.time = 0.0
        for name in ("Event", "synchronize", "Stream", "stream", "current_stream", "CUDAGraph", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def Event(self, enable_timing: bool) -> Any:
        assert enable_timing
        event = types.SimpleNamespace(at=None)

        def record() -> None:
            self.time += 1
            event.at = self.time
            self.log.append("event")

        event.record, event.elapsed_time = record, lambda end: end.at - event.at
        return event

    def synchronize(self) -> None:
        self.log.append("wait")

    def Stream(self) -> Any:
        return types.SimpleNamespace(wait_stream=lambda other: None)

    current_stream = Stream

    def stream(self, chosen: Any) -> Any:
        return self.graph(None, "side stream")

    def CUDAGraph(self) -> Any:
        return types.SimpleNamespace(replay=lambda: self.log.append("replay"))

    def graph(self, captured: Any, name: str = "capture") -> Any:
        class Region:
            def __enter__(region) -> None:
                self.log.append(name)

            def __exit__(region, *error: Any) -> None:
                self.log.append("end")

        return Region()


@pytest.fixture
def cuda_clock(monkeypatch: pytest.MonkeyPatch) -> tuple[clock.CudaClock, FakeDevice]:
    device = FakeDevice(monkeypatch)
    made = object.__new__(clock.CudaClock)
    made._flushed = types.SimpleNamespace(zero_=lambda: device.log.append("flush"))
    return made, device


def test_events_surround_the_body_alone(cuda_clock: tuple[clock.CudaClock, FakeDevice]) -> None:
    made, device = cuda_clock
    assert made.milliseconds(lambda: device.log.append("body"), 2) == [1.0, 1.0]
    assert device.log == ["body"] * 3 + ["wait", "flush", "event", "body", "event", "wait"] * 2


def test_a_graph_is_captured_after_a_warm_up(cuda_clock: tuple[clock.CudaClock, FakeDevice]) -> None:
    made, device = cuda_clock
    replay = made.capture(lambda: device.log.append("body") or "result")
    replay.run()
    assert replay.result == "result"
    assert device.log == ["side stream", "body", "body", "body", "end", "capture", "body", "end", "replay"]


def test_kernels_are_those_of_the_device(
    cuda_clock: tuple[clock.CudaClock, FakeDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    def event(name: str, device: str, duration: float) -> Any:
        span = types.SimpleNamespace(elapsed_us=lambda: duration)
        return types.SimpleNamespace(name=name, device_type=types.SimpleNamespace(name=device), time_range=span)

    class Profile:
        def __init__(self, activities: Any) -> None:
            assert activities == [torch.profiler.ProfilerActivity.CUDA]

        def __enter__(self) -> Profile:
            return self

        def __exit__(self, *error: Any) -> None:
            pass

        def events(self) -> list[Any]:
            name = "void deeplab_crf::cuda::blur_axis<float>(deeplab_crf::cuda::LatticeView<float>, int)"
            return [event("cudaLaunchKernel", "CPU", 9.0), event(name, "CUDA", 3.0), event(name, "CUDA", 4.0)]

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    assert cuda_clock[0].kernels(lambda: None, 2) == {"blur_axis": [3.0, 4.0]}


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("void deeplab_crf::cuda::splat_pieces<float>(deeplab_crf::cuda::LatticeView<float>)", "splat_pieces"),
        ("deeplab_crf::cuda::mark_first(int const*, unsigned int const*)", "mark_first"),
        ("void deeplab_crf::cuda::embed_points<float, float, 5, 1>(deeplab_crf::cuda::F<float>)", "embed_points"),
        ("void deeplab_crf::cuda::embed_points<float, double, 5, 1>(int)", "embed_points (double)"),
        ("void deeplab_crf::cuda::embed_points<double, double, 5, 1>(int)", "embed_points"),
        ("void cub::_V_300200_SM_900::DeviceRadixSortOnesweepKernel<a, b<c> >(int)", "sort (CUB)"),
        ("void cub::CUB_1::detail::scan::DeviceScanKernel<int>(int)", "sum (CUB)"),
        ("Memset (Device)", "memset"),
        ("Memcpy DtoD (Device -> Device)", "memcpy"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::F>(int)", "vectorized_elementwise_kernel"),
        ("deeplab_crf::lattice_build", "lattice_build"),
    ],
)
def test_names_of_kernels(name: str, short: str) -> None:
    assert clock.short_name(name) == short


def test_what_cannot_be_captured_fails_a_check() -> None:
    class Refusing(clock.HostClock):
        def capture(self, body: clock.Body) -> clock.Replay:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    section = Section("Speed")
    assert measure.time_replayed(section, Refusing(), "one image", lambda: None, 2, target=1.0) is None
    assert section.bad == ["Speed: one image: in a CUDA graph"]
    assert section.checks[0].found == "operation not permitted when stream is capturing"
    assert section.goals == []


# ---------------------------------------------------------------------------------------------------------------------- kernels
ACCOUNTS = {**traffic.PREPARATION, **traffic.BUILD, **traffic.FILTER, **traffic.MEAN_FIELD, **traffic.GRADIENTS}
# A VOC image of 21 labels with the kernels of 80/13, as in docs/cuda.md.
VOC = traffic.Sizes(500 * 375, 5, 11_000, 21, (2,))


def test_every_kernel_has_an_account_of_its_bytes() -> None:
    """And none is left of a kernel that is gone. A kernel of one block goes to `SMALL`."""
    sources = [path for room in ("lattice", "mean_field") for path in (ROOT / "csrc" / room / "cuda").glob("*.cu*")]
    pattern = re.compile(r"__global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(")
    names = {name for path in sources for name in pattern.findall(path.read_text())}
    assert names == (set(ACCOUNTS) | traffic.SMALL) - set(clock.GROUPS)


def test_bytes_are_those_of_the_documents() -> None:
    assert ACCOUNTS["update_beliefs"](VOC).memory / 1e6 == pytest.approx(47, abs=0.5)
    assert ACCOUNTS["splat_pieces"](VOC).memory / 1e6 == pytest.approx(9.0 + 15.75 + 1.06, abs=0.02)
    assert ACCOUNTS["splat_pieces"](VOC).cache / 1e6 == pytest.approx(94.5)
    assert ACCOUNTS["blur_axis"](VOC).memory / 1e6 == pytest.approx(2.2, abs=0.01)
    assert ACCOUNTS["embed_points"](VOC).memory / 1e6 == pytest.approx(17.25)
    assert ACCOUNTS["sort (CUB)"](VOC).memory == (2 * 16 + 4) * VOC.corners
    assert all(account(VOC).memory > 0 for account in ACCOUNTS.values())


CEILINGS = {"copy": 1e12, "cache": 4e12, "arithmetic": 1e13}


@pytest.mark.parametrize(
    ("moved", "seconds", "expected"),
    [
        (traffic.Traffic(1e6), 4e-6, "launch"),
        (traffic.Traffic(8e6), 10e-6, "memory (80%)"),
        (traffic.Traffic(1e6, cache=25e6), 10e-6, "second-level cache (65%)"),
        (traffic.Traffic(1e6, flops=9e7), 10e-6, "arithmetic (90%)"),
        (traffic.Traffic(1e6), 10e-6, "latency (memory explains 10%)"),
    ],
)
def test_what_bounds_a_kernel(moved: traffic.Traffic, seconds: float, expected: str) -> None:
    assert traffic.bounding(moved, seconds, CEILINGS) == expected


def test_the_table_of_kernels() -> None:
    """Single runs by their median, groups as a whole, the longest first."""

    class Canned(clock.HostClock):
        def kernels(self, body: clock.Body, repeats: int) -> dict[str, list[float]]:
            assert not torch.is_grad_enabled()
            return {"sort (CUB)": [2.0] * 8, "blur_axis": [6.0, 6.0, 99.0, 5.0, 7.0, 6.0] * 2, "other": [1.0] * 2}

    part = kernels.Part("filter", lambda: None, {**traffic.FILTER, "sort (CUB)": traffic.sort_traffic}, VOC)
    found = kernels.profiled(Canned(), part, 2)
    assert [(kernel.name, kernel.runs, kernel.seconds) for kernel in found] == [
        ("blur_axis", 6, pytest.approx(6e-6)),
        ("sort (CUB)", 1, pytest.approx(8e-6)),
        ("other", 1, pytest.approx(1e-6)),
    ]
    section = Section("Kernels", data={"kernels": {}})
    kernels.add_table(section, "80/13: filter", found, CEILINGS)
    assert section.tables[0].rows == [
        ["blur_axis", "6", "6.0", "36.0", "2.20", "0.37", "37%", "memory (37%)"],
        ["sort (CUB)", "1", "8.0", "8.0", "40.50", "5.06", "506%", "memory (506%)"],
        ["other", "1", "1.0", "1.0", "-", "-", "-", "launch"],
        ["all", "", "", "45.0", "", "", "", ""],
    ]
    raw = section.data["kernels"]["80/13: filter"][0]
    assert raw["bandwidth"] == pytest.approx(raw["traffic"]["memory"] / raw["seconds"])


def test_ceilings_are_bytes_over_time(tmp_path: Path) -> None:
    class Canned(clock.HostClock):
        def milliseconds(self, body: clock.Body, repeats: int) -> list[float]:
            body()
            return [2.0] * repeats

        def kernels(self, body: clock.Body, repeats: int) -> dict[str, list[float]]:
            return {"add": [4.0] * repeats}

    ceilings = facts.measure_ceilings(context(tmp_path), Canned(), Section("Machine"))
    assert ceilings["copy"] == pytest.approx(2 * (1 << 20) / 2e-3)
    assert ceilings["cache"] == pytest.approx(2 * (12 << 10) / 4e-6)
    assert ceilings["arithmetic"] == pytest.approx(2 * 128**3 / 2e-3)
    assert ceilings["launch"] == ceilings["graph launch"] == pytest.approx(2e-3 / facts.LAUNCHES)


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
