"""An image through a DeepLab network and its CRF: time and peak memory of the whole, and the CRF's share.

    python -m benchmarks.segment [--model v2-resnet101-aspp] [--repeats N] [--json FILE] [--markdown FILE]

Weights are random: neither time nor memory depends on them. The CRF refines scores as a network gives them (`cases.network_unary`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.cases import SYNTHETIC, Case, default_image, load_image, network_unary
from benchmarks.crf import available_threads, progress, time_in_turns
from benchmarks.engines import Inputs, Run
from benchmarks.memory import MemoryUse, measure
from benchmarks.results import Timing
from deeplab_crf.core.presets import get_preset
from deeplab_crf.models import VARIANTS, SegmentationPipeline, build_model

PLAIN, NETWORK, CRF, WHOLE = "network in plain torch", "network", "CRF", "network and CRF"
CLASSES = 21
SHARE_GOAL = 0.1  # of the whole, for the CRF
SPEED_GOAL = 1.4  # of the fused network over the plain one


@cache
def pipeline(model: str) -> SegmentationPipeline:
    """Of a variant, with random weights, in evaluation mode."""
    torch.manual_seed(0)
    return SegmentationPipeline(build_model(model, CLASSES).eval())


def make_case(model: str, size: int) -> Case:
    """A square image and the kernels of the variant's CRF."""
    preset = get_preset(VARIANTS[model].crf)
    gaussian, bilateral = preset.kernels
    sxy, srgb = bilateral.widths_axes(2)[0], bilateral.widths_channels(3)[0]
    widths = (gaussian.widths_axes(2)[0], gaussian.weight), (sxy, srgb, bilateral.weight)
    return Case(size, size, CLASSES, preset.iterations, *widths)


class Part:
    """One part of the pipeline. name: the variant's, and the part's."""

    def __init__(self, name: str, threads: int) -> None:
        self.name, self.threads = name, threads
        self.model, _, self.part = name.partition(": ")

    def run(self, case: Case, inputs: Inputs) -> Run:
        """The network is built outside of the clock; preprocessing and upsampling are the network's."""
        torch.set_num_threads(self.threads)
        segmenter = pipeline(self.model)
        image = torch.from_numpy(inputs.image.transpose(2, 0, 1).copy())[None]
        logits = torch.from_numpy(-inputs.unary).reshape(1, case.labels, case.height, case.width)
        with torch.no_grad():
            began = time.perf_counter()
            if self.part == PLAIN:
                result = segmenter.network(segmenter.preprocess(image))["out"]
            elif self.part == NETWORK:
                result = segmenter.inference_network(segmenter.preprocess(image))["out"]
            elif self.part == CRF:
                result = segmenter.refine(logits, image)
            else:
                result = segmenter.predict(inputs.image)[0].logits
            total = time.perf_counter() - began
        return Run(None, None, total, result.reshape(case.labels, -1).numpy())


def find_engine(name: str, threads: int = 1) -> Part:
    """For `benchmarks.memory`."""
    return Part(name, threads)


def markdown(timings: Sequence[Timing], memory: dict[str, MemoryUse], environment: dict[str, Any]) -> str:
    """The table, under the machine that it was measured on."""
    whole = timings[-1].median()
    assert whole is not None
    rows = []
    for timing in timings:
        seconds = timing.median()
        assert seconds is not None
        cells = [timing.engine, report.milliseconds(seconds), f"{seconds / whole:.1%}"]
        rows.append([*cells, report.megabytes(memory.get(timing.engine))])
    plain, fused, crf = (timing.median() or 0.0 for timing in timings[:3])
    share, speed = crf / whole, plain / fused
    reached, faster = ("reached" if met else "MISSED" for met in (share < SHARE_GOAL, speed >= SPEED_GOAL))
    lines = [
        f"{environment['processor']}, {environment['instruction set']}, {environment['threads'][0]} thread(s); Python "
        f"{environment['python']}, torch {environment['torch']}; commit {environment['commit']}, {environment['date']}. "
        f"Image: {environment['image']}. Command: `{environment['command']}`. Medians; the parts take turns.",
        f"- the network, fused, against plain torch: {speed:.2f}x, wanted {SPEED_GOAL}x: {faster}\n"
        f"- the CRF's share of the whole: {share:.1%}, wanted less than {SHARE_GOAL:.0%}: {reached}",
        report.table(["", "ms", "of the whole", "memory (MB)"], rows),
    ]
    return "\n\n".join(lines) + "\n"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.segment", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--model", choices=list(VARIANTS), default="v2-resnet101-aspp", metavar="NAME", help="(%(default)s)"
    )
    parser.add_argument("--size", type=int, default=513, help="rows and columns of the image (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each part (5)")
    parser.add_argument("--threads", type=int, default=available_threads(), help="all processors by default")
    parser.add_argument("--image", default=default_image(), help=f"image, or '{SYNTHETIC}' (%(default)s)")
    parser.add_argument("--no-memory", action="store_true", help="skip the memory measurements")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every single measurement")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table")
    options = parser.parse_args(arguments)
    for name in ("size", "repeats", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"argument --{name}: must be at least 1; got {getattr(options, name)}")
    if options.image != SYNTHETIC and not Path(options.image).is_file():
        parser.error(f"argument --image: no such file: {options.image}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the files."""
    options = parse_arguments(arguments)
    case = make_case(options.model, options.size)
    inputs = Inputs(load_image(options.image, case.width, case.height), network_unary(case))
    parts = [Part(f"{options.model}: {part}", options.threads) for part in (PLAIN, NETWORK, CRF, WHOLE)]
    progress(f"{options.model}, {options.size} x {options.size}")
    timings = time_in_turns(case, inputs, parts, options.repeats)
    memory = {}
    if not options.no_memory:
        for part in (*parts[:2], parts[-1]):
            progress(f"{part.name}: memory, in a process of its own")
            memory[part.name] = measure(part.name, options.threads, case, options.image, engines="benchmarks.segment")
    where = report.environment(options.image, [options.threads]) | {"torch": torch.__version__}
    where["command"] = ("python -m benchmarks.segment " + " ".join(sys.argv[1:])).strip()
    text = markdown(timings, memory, where)
    print(text)
    if options.markdown:
        options.markdown.write_text(text)
    if options.json:
        data = {"environment": where, "timings": [asdict(timing) for timing in timings]}
        data["memory"] = {name: asdict(use) for name, use in memory.items()}
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
