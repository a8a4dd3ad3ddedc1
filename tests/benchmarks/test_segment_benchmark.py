"""The segmentation benchmark: its parts are the pipeline's, its table and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import cases, segment
from benchmarks.engines import Inputs

MODEL = "v2-compact-aspp"


@pytest.fixture(autouse=True)
def threads_as_before() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_whole_is_the_crf_after_the_network() -> None:
    case = segment.make_case(MODEL, 513)
    assert (case.iterations, case.gaussian, case.bilateral) == (10, (1, 3), (67, 3, 4))
    image = cases.load_image(cases.SYNTHETIC, 513, 513)
    network = (
        segment.find_engine(f"{MODEL}: {segment.NETWORK}").run(case, Inputs(image, cases.network_unary(case))).result
    )
    crf = segment.find_engine(f"{MODEL}: {segment.CRF}").run(case, Inputs(image, -network)).result
    whole = segment.find_engine(f"{MODEL}: {segment.WHOLE}").run(case, Inputs(image, cases.network_unary(case))).result
    np.testing.assert_allclose(whole, crf, rtol=1e-3, atol=1e-3)


def test_table_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", str(tmp_path / "segment.json"), "--markdown", str(tmp_path / "segment.md")]
    options = ["--model", MODEL, "--size", "33", "--image", "synthetic", "--repeats", "1", "--threads", "1"]
    assert segment.main([*options, *files]) == 0
    text = capsys.readouterr().out
    assert (tmp_path / "segment.md").read_text() in text
    for part in (segment.PLAIN, segment.NETWORK, segment.CRF, segment.WHOLE):
        assert f"| {MODEL}: {part} |" in text
    assert "the network, fused, against plain torch: " in text
    assert "the CRF's share of the whole: " in text
    data = json.loads((tmp_path / "segment.json").read_text())
    assert [len(timing["total"]) for timing in data["timings"]] == [1, 1, 1, 1]
    assert min(use["peak"] for use in data["memory"].values()) > 1 << 20


@pytest.mark.parametrize("arguments", [["--repeats", "0"], ["--image", "nothing.jpg"], ["--model", "v3"]])
def test_bad_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        segment.main(arguments)
    assert f"argument {arguments[0]}" in capsys.readouterr().err
