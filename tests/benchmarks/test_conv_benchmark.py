"""The benchmark of convolutions: the networks' shapes, wrong results caught, tables, files, the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import conv, conv_networks
from deeplab_crf.benchmark import conv as conv_benchmark
from deeplab_crf.cli import main
from deeplab_crf.nn import fuse


def _convolutions_of(network: torch.nn.Module, size: int) -> set[tuple[object, ...]]:
    """Channels, filters, kernel, stride, rate, height, width of every convolution that runs."""
    seen = set()

    def note(module: Any, inputs: Any, _output: Any) -> None:
        seen.add((*module.weight.shape[:3], module.stride[0], module.dilation[0], *inputs[0].shape[2:]))

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        network(torch.zeros(1, 3, size, size))
    return seen


@pytest.mark.parametrize(("network", "model"), [("V1 LargeFOV", "v1-largefov"), ("V2 ResNet-101", "v2-resnet101")])
def test_the_shapes_are_those_of_the_networks(network: str, model: str) -> None:
    listed = {
        (case.filters, case.channels, case.kernel, case.stride, rate, case.height, case.width)
        for case in conv_benchmark.distinct_cases([model], 65, 65)
        for rate in case.rates
    }
    assert listed == _convolutions_of(conv_networks.make_network(network), 65)


def test_sizes_of_the_papers() -> None:
    assert {case.height for case in conv_benchmark.MODELS["v1-msc"](321, 321) if case.name.startswith("fc")} == {41}
    assert {case.height for case in conv_benchmark.MODELS["v2-resnet101"](513, 513) if case.name == "ASPP sum"} == {65}


def test_fused_networks_agree() -> None:
    network = conv_networks.make_network("V2 ResNet-101")
    x = torch.randn(1, 3, 33, 33)
    with torch.inference_mode():
        want, fused = network(x), fuse(network)
        assert float((fused(x) - want).abs().max() / want.abs().max()) < 1e-4
    report = fused.fusion_report
    assert len(report.folded) == 104
    assert report.left == {"conv1": "3 -> 64 channels"}
    assert len(report.sums[0]) == 4


def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    case = conv_benchmark.ConvCase("made up", 16, 16, 3, 9, 9)
    right = conv_benchmark.dilated_conv2d
    monkeypatch.setattr(conv_benchmark, "dilated_conv2d", lambda *args, **options: 1.01 * right(*args, **options))
    with pytest.raises(ValueError, match=r"results differ by 1\.0e-02"):
        conv_benchmark.run_case(case, repeats=1)


def test_tables_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert conv.main(["--quick", "--json", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "a.md")]) == 0
    text = capsys.readouterr().out
    assert text.strip() == (tmp_path / "a.md").read_text().strip()
    assert "| res4 3x3" in text
    assert "wanted 1.8x" in text
    rows = json.loads((tmp_path / "a.json").read_text())["convolutions"]
    assert all(len(times) == 2 for row in rows for times in row["seconds"].values())
    assert {row["algorithm"] for row in rows} >= {"winograd", "shifted", "torch"}


def test_a_network_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        conv_networks.NETWORKS, "small", lambda: torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU())
    )
    result = conv.measure_network("small", (9, 12), 1, 1, 1)
    assert result.difference < 1e-5
    assert conv.network_row(result)[:2] == ["small", "12 x 9"]
    assert any("small, 12 x 9" in line for line in conv.goals([], [result]))


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "conv", "--size", "33", "--repeats", "1", "--model", "v2-resnet101"]) == 0
    assert "res5 3x3" in capsys.readouterr().out
    assert main(["bench", "conv", "--size", "33", "--repeats", "1", "--model", "v2-resnet101", "--json"]) == 0
    cases = json.loads(capsys.readouterr().out)["cases"]
    assert all(case["difference"] < 1e-4 for case in cases)
