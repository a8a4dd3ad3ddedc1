"""The benchmark measures what it says: same input for all, wrong results caught, ratios and means right."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cases, crf, engines, memory, report, results

TINY = cases.Case(40, 30, 5, 2, (3, 3), (80, 13, 10))
SPARSE = cases.Case(40, 30, 5, 2, (1, 3), (67, 3, 4))
UNEQUAL = ("wrong labels", "wrong probabilities")


def inputs(case: cases.Case) -> engines.Inputs:
    """Of a case, from the synthetic picture."""
    return engines.Inputs(cases.load_image(cases.SYNTHETIC, case.width, case.height), cases.network_unary(case))


class FakeEngine:
    """Answers in no time, right or wrong."""

    threads = 1

    def __init__(self, name: str, seconds: float, fault: str = "") -> None:
        self.name = name
        self._seconds = seconds
        self._fault = fault

    def run(self, case: cases.Case, given: engines.Inputs) -> engines.Run:
        result = np.exp(-given.unary)
        if self._fault == "wrong labels":
            result[:, : case.points // 50] = result[::-1, : case.points // 50]
        if self._fault == "wrong probabilities":
            result[:, 7] *= 0.99
        return engines.Run(self._seconds / 4, 3 * self._seconds / 4, self._seconds, result)


def test_the_eight_cases() -> None:
    assert len(cases.CASES) == 8
    assert [case.sparse for case in cases.CASES] == [False] * 3 + [True] * 3 + [False] * 2
    assert all(cases.Case.from_json(json.loads(json.dumps(case.to_json()))) == case for case in cases.CASES)


def test_inputs_are_the_same_every_time_and_like_a_network() -> None:
    first, second = inputs(TINY), inputs(TINY)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.unary, second.unary)
    assert first.image.shape == (30, 40, 3)
    assert first.image.dtype == np.uint8
    assert first.unary.dtype == np.float32
    large = np.exp(-cases.network_unary(cases.CASES[0]))
    np.testing.assert_allclose(large.sum(axis=0), 1.0, atol=21e-5)
    assert len(np.unique(large.argmax(axis=0))) <= cases.ACTIVE_LABELS + 1


@pytest.mark.parametrize("source", [cases.SYNTHETIC, str(cases.BUNDLED_PHOTOGRAPH)])
def test_images_come_at_the_size_of_the_case(source: str) -> None:
    assert cases.load_image(source, 64, 48).shape == (48, 64, 3)


def test_speedups_and_means() -> None:
    contestants = [FakeEngine(engines.PEER, 0.6), FakeEngine(engines.OURS, 0.1)]
    result = results.Result(TINY, {}, crf.time_in_turns(TINY, inputs(TINY), contestants, 3), [])
    for phase in results.PHASES:
        assert result.speedup(engines.OURS, 1, phase) == pytest.approx(6.0)
    assert result.speedup(engines.OURS, 2) is None
    assert len(result.timings[0].total) == 3
    assert results.geometric_mean([2.0, None, 8.0]) == pytest.approx(4.0)
    assert results.geometric_mean([None]) is None


@pytest.mark.parametrize("fault", ["", *UNEQUAL])
@pytest.mark.parametrize("case", [TINY, SPARSE])
def test_results_are_compared_before_timing(case: cases.Case, fault: str) -> None:
    contestants = [FakeEngine(engines.PEER, 0.6), FakeEngine(engines.OURS, 0.1, fault)]
    (agreement,) = crf.check_results(case, inputs(case), contestants)
    tolerated = fault == "" or (case.sparse and fault == "wrong probabilities")
    assert agreement.good == tolerated
    assert (agreement.equal_labels < 0.999) == (fault == "wrong labels")


def test_without_the_peer_there_is_nothing_to_compare() -> None:
    assert crf.check_results(TINY, inputs(TINY), [FakeEngine(engines.OURS, 0.1)]) == []


def test_ours_answers_through_the_script_of_pydensecrf() -> None:
    engine = engines.find_engine(engines.OURS, threads=1)
    assert engine is not None
    run = engine.run(TINY, inputs(TINY))
    assert run.probabilities is not None
    assert run.probabilities.shape == (5, TINY.points)
    assert run.build is not None
    assert run.inference is not None
    assert run.build + run.inference == pytest.approx(run.total)


def test_simplecrf_is_called_as_its_users_call_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def densecrf(image: np.ndarray, probabilities: np.ndarray, settings: tuple[float, ...]) -> np.ndarray:
        seen.update(image=image, probabilities=probabilities, settings=settings)
        return probabilities.argmax(axis=-1).astype(np.int8)

    module = types.ModuleType("denseCRF")
    module.densecrf = densecrf  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "denseCRF", module)
    engine = engines.find_engine(engines.SIMPLE)
    assert engine is not None
    given = inputs(TINY)
    run = engine.run(TINY, given)
    assert seen["probabilities"].shape == (30, 40, 5)
    assert seen["probabilities"].dtype == np.float32
    assert seen["settings"] == (10, 80, 13, 3, 3, 2)
    np.testing.assert_array_equal(run.labels, given.unary.argmin(axis=0))
    assert run.probabilities is None


@pytest.mark.skipif(not memory.STATUS.exists(), reason="needs /proc")
def test_memory_is_that_of_the_run_alone() -> None:
    use = memory.measure(engines.OURS, 1, TINY, cases.SYNTHETIC)
    assert 0 <= use.rise < 50e6
    assert use.peak > use.rise


def test_tables_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(crf, "QUICK_CASES", (TINY, SPARSE))
    contestants = [FakeEngine(engines.PEER, 0.6), FakeEngine(engines.OURS, 0.1)]
    monkeypatch.setattr(crf, "engines", lambda threads: contestants)
    paths = {name: tmp_path / name for name in ("out.json", "out.md", "out.png")}
    options = ["--json", str(paths["out.json"]), "--markdown", str(paths["out.md"]), "--plot", str(paths["out.png"])]
    assert crf.main(["--quick", "--image", cases.SYNTHETIC, *options]) == 0
    text = capsys.readouterr().out
    assert paths["out.md"].read_text() + "\n" == text
    assert text.count("| geometric mean |") == 3
    assert "6.0x" in text
    data = json.loads(paths["out.json"].read_text())
    assert data["environment"]["commit"]
    assert data["geometric_means"][0]["total"] == pytest.approx(6.0)
    assert len(data["results"]) == 2
    assert paths["out.png"].read_bytes().startswith(b"\x89PNG")


def test_a_wrong_result_fails_the_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(crf, "QUICK_CASES", (TINY,))
    contestants = [FakeEngine(engines.PEER, 0.6), FakeEngine(engines.OURS, 0.1, "wrong labels")]
    monkeypatch.setattr(crf, "engines", lambda threads: contestants)
    assert crf.main(["--quick", "--image", cases.SYNTHETIC]) == 1
    assert "do not trust the times" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "9"], "1 to 8"),
        (["--cases", "x"], "invalid literal"),
        (["--threads", "0"], "at least 1"),
        (["--repeats", "0"], "at least 1"),
        (["--image", "nowhere.jpg"], "no such file"),
    ],
)
def test_bad_options(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        crf.main(arguments)
    assert message in capsys.readouterr().err


def test_environment_names_what_numbers_depend_on() -> None:
    found = report.environment(cases.SYNTHETIC, [1, 2])
    assert found["processor"]
    assert found["threads"] == [1, 2]
    assert found["image"] == cases.SYNTHETIC
