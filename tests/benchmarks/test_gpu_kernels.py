"""The clock of the GPU's report with a fake device, and what it makes of kernels: names, bytes, what bounds them."""

from __future__ import annotations

import re
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cases
from benchmarks.gpu import clock, facts, kernels, measure, traffic
from benchmarks.gpu.context import Context
from benchmarks.gpu.section import Section

ROOT = Path(__file__).resolve().parents[2]


# ------------------------------------------------------------------------------------------------------------------------ clock
class FakeDevice:
    """Stands in for torch.cuda: a log of what was asked, and a millisecond between any two events."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.time = 0.0
        for name in ("Event", "synchronize", "Stream", "stream", "current_stream", "CUDAGraph", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: self.log.append("lead"))

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


@pytest.mark.parametrize(("cold", "before"), [(True, ["flush", "lead"]), (False, ["lead"])])
def test_the_device_is_given_a_lead(
    cold: bool, before: list[str], cuda_clock: tuple[clock.CudaClock, FakeDevice]
) -> None:
    made, device = cuda_clock
    assert made.device_milliseconds(lambda: device.log.append("body"), 2, cold=cold) == [1.0, 1.0]
    assert device.log == ["body"] * 3 + ["wait", *before, "event", "body", "event", "wait"] * 2


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
    sources = [
        path for room in ("conv", "lattice", "mean_field") for path in (ROOT / "csrc" / room / "cuda").glob("*.cu*")
    ]
    pattern = re.compile(r"__global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(")
    names = {name for path in sources for name in pattern.findall(path.read_text())}
    assert names == (set(ACCOUNTS) | set(traffic.CONVOLUTION) | traffic.SMALL) - set(clock.GROUPS)


def test_bytes_are_those_of_the_documents() -> None:
    assert ACCOUNTS["update_beliefs"](VOC).memory / 1e6 == pytest.approx(47, abs=0.5)
    assert ACCOUNTS["propagate_gradient"](VOC).memory / 1e6 == pytest.approx(79, abs=0.5)
    assert ACCOUNTS["add_corner_gradients"](VOC).memory == pytest.approx(34e6 + 16 * VOC.corners, rel=0.01)
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

    rehearsal = Context("cpu", cases.SYNTHETIC, False, str(tmp_path), time.time() + 60)
    ceilings = facts.measure_ceilings(rehearsal, Canned(), Section("Machine"))
    assert ceilings["copy"] == pytest.approx(2 * (1 << 20) / 2e-3)
    assert ceilings["cache"] == pytest.approx(2 * (12 << 10) / 4e-6)
    assert ceilings["arithmetic"] == pytest.approx(2 * 128**3 / 2e-3)
    assert ceilings["launch"] == ceilings["graph launch"] == pytest.approx(2e-3 / facts.LAUNCHES)
