"""Dense CRF: this package against pydensecrf2 (and SimpleCRF where it is installed), on the same input in the same run.

    python -m benchmarks.crf [--quick] [--json FILE] [--markdown FILE] [--plot FILE]

Results are compared before anything is timed. Then the engines take turns, so that a busy machine slows all of them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import report
from benchmarks.cases import (
    CASES,
    HUGE_CASE,
    QUICK_CASES,
    SYNTHETIC,
    Case,
    default_image,
    load_image,
    network_unary,
)
from benchmarks.engines import OURS, PEER, SIMPLE, Engine, Inputs, Run, find_engine
from benchmarks.memory import MemoryUse, measure
from benchmarks.results import Agreement, Result, Timing

PROBABILITY_BOUND = 1e-4
LABEL_BOUNDS = {False: 0.9999, True: 0.999}  # by Case.sparse


def progress(text: str) -> None:
    """To standard error, so that standard output holds the table alone."""
    print(text, file=sys.stderr, flush=True)


def available_threads() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def engines(threads: Sequence[int]) -> list[Engine]:
    """The peers that are installed, and ours with each number of threads."""
    wanted = [(PEER, 1), (SIMPLE, 1), *((OURS, count) for count in threads)]
    found = [find_engine(name, count) for name, count in wanted]
    return [engine for engine in found if engine is not None]


def count_vertices(case: Case, inputs: Inputs) -> dict[str, int]:
    """M of both kernels: what the work grows with."""
    from deeplab_crf import PermutohedralLattice

    rows, columns = np.mgrid[: case.height, : case.width].astype(np.float32)
    positions = np.stack([columns, rows], axis=-1).reshape(-1, 2)
    colours = inputs.image.reshape(-1, 3).astype(np.float32)
    sxy, srgb, _ = case.bilateral
    features = {
        "gaussian": positions / np.float32(case.gaussian[0]),
        "bilateral": np.concatenate([positions / np.float32(sxy), colours / np.float32(srgb)], axis=1),
    }
    return {name: PermutohedralLattice(array).num_vertices for name, array in features.items()}


def compare(case: Case, reference: Run, run: Run, engine: Engine) -> Agreement:
    """Labels always; probabilities where both have them. Only our own results have to be good."""
    equal = float((reference.labels == run.labels).mean())
    difference = None
    if reference.probabilities is not None and run.probabilities is not None:
        difference = float(np.abs(reference.probabilities - run.probabilities).max())
    good = equal >= LABEL_BOUNDS[case.sparse]
    if not case.sparse and difference is not None:
        good = good and difference <= PROBABILITY_BOUND
    return Agreement(engine.name, engine.threads, equal, difference, good or engine.name != OURS)


def check_results(case: Case, inputs: Inputs, contestants: Sequence[Engine]) -> list[Agreement]:
    """Run everybody once, which also warms them up, and compare with pydensecrf2 where it is installed."""
    runs = [engine.run(case, inputs) for engine in contestants]
    reference = next((run for run, engine in zip(runs, contestants, strict=True) if engine.name == PEER), None)
    if reference is None:
        return []
    pairs = zip(runs, contestants, strict=True)
    return [compare(case, reference, run, engine) for run, engine in pairs if engine.name != PEER]


def time_in_turns(case: Case, inputs: Inputs, contestants: Sequence[Engine], repeats: int) -> list[Timing]:
    """Every engine in turn, then every engine again; in each turn it runs twice and the second run counts.

    Else it would pay for the memory that the engine before gave back to the system: fresh pages can cost as much as the
    work itself on a virtual machine, and a script that refines many images pays for them once. Results are dropped
    before the next run starts.
    """
    timings = [Timing(engine.name, engine.threads) for engine in contestants]
    for _ in range(repeats):
        for timing, engine in zip(timings, contestants, strict=True):
            engine.run(case, inputs)
            timing.add(engine.run(case, inputs))
    return timings


def measure_case(case: Case, image: str, contestants: Sequence[Engine], repeats: int, memory: bool) -> Result:
    """Compare, time and weigh one case."""
    inputs = Inputs(load_image(image, case.width, case.height), network_unary(case))
    vertices = count_vertices(case, inputs)
    agreements = check_results(case, inputs, contestants)
    result = Result(case, vertices, time_in_turns(case, inputs, contestants, repeats), agreements)
    if memory:
        for engine in contestants:
            result.memory[engine.name, engine.threads] = measure(engine.name, engine.threads, case, image)
    return result


def measure_huge(image: str, threads: int) -> MemoryUse:
    """Ours alone, in a fresh process: 16.8 million points."""
    progress(f"{HUGE_CASE.name}: {threads} threads, in a process of its own")
    return measure(OURS, threads, HUGE_CASE, image, timeout=7200)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crf", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three cases, two repetitions, no memory")
    parser.add_argument("--cases", help="numbers of cases, 1 to 8, with commas; all by default")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each engine (5)")
    parser.add_argument("--threads", help="thread counts of ours, with commas; 1 and all processors by default")
    parser.add_argument("--image", default=default_image(), help=f"image, or '{SYNTHETIC}' (%(default)s)")
    parser.add_argument("--no-memory", action="store_true", help="skip the memory measurements")
    parser.add_argument("--huge", action="store_true", help="also 4096x4096x21, ours alone, time and peak memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every single measurement")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the tables")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="bars of the speed-ups (needs matplotlib)")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"argument --repeats: must be at least 1; got {options.repeats}")
    if options.image != SYNTHETIC and not Path(options.image).is_file():
        parser.error(f"argument --image: no such file: {options.image}")
    try:
        options.cases = _chosen_cases(options.cases, options.quick)
        options.threads = _thread_counts(options.threads)
    except ValueError as error:
        parser.error(str(error))
    return options


def _chosen_cases(text: str | None, quick: bool) -> tuple[Case, ...]:
    if text is None:
        return QUICK_CASES if quick else CASES
    numbers = [int(part) for part in text.split(",")]
    if not all(1 <= number <= len(CASES) for number in numbers):
        raise ValueError(f"argument --cases: numbers must be 1 to {len(CASES)}; got {text}")
    return tuple(CASES[number - 1] for number in numbers)


def _thread_counts(text: str | None) -> list[int]:
    counts = [1, available_threads()] if text is None else [int(part) for part in text.split(",")]
    if min(counts) < 1:
        raise ValueError(f"argument --threads: counts must be at least 1; got {text}")
    return sorted(set(counts))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the files. Returns 1 if a result of ours differs from pydensecrf2's."""
    options = parse_arguments(arguments)
    contestants = engines(options.threads)
    environment = report.environment(options.image, options.threads)
    repeats = min(options.repeats, 2) if options.quick else options.repeats
    memory = not (options.quick or options.no_memory)
    results = []
    for number, case in enumerate(options.cases, 1):
        progress(f"[{number}/{len(options.cases)}] {case.name}")
        results.append(measure_case(case, options.image, contestants, repeats, memory))
        progress("    " + report.one_line(results[-1]))
    huge = measure_huge(options.image, max(options.threads)) if options.huge else None
    text = report.markdown(results, environment, huge)
    print(text)
    report.write_files(options, text, report.as_json(results, environment, huge), results)
    bad = [agreement for result in results for agreement in result.agreements if not agreement.good]
    if bad:
        progress(f"{len(bad)} results differ from {PEER}'s by more than allowed: do not trust the times")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
