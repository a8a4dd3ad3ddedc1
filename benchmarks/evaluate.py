"""Evaluation of a data set with CRF: ours against the same loop with pydensecrf2 in the place of our CRF.

    python -m benchmarks.evaluate --data camvid:../shared/data/camvid:val [--scores FOLDER] [--images N] [--markdown FILE]

Two loops over the same images, each from files to confusion matrices and trimap curves:

  CRF alone            scores read from files (those of --scores, or made from the labels), upsampled; no network runs
  network and CRF      the image goes through a network: plain torch with all threads before pydensecrf2, ours as
                       `deeplab-crf evaluate` runs it. Without --weights they are random, and the CRF gets the scores of the files,
                       since those of a random network are like no real ones

The peer's loop is the one that people write: image after image, pydensecrf2 on one thread, which is all it has, the network on one
thread or on all, whichever is faster on the first image: torch's threads wait for each other, which costs dearly on a busy machine.
Labels of the first images are compared before anything is timed. Then both take turns, a few images each, so that a busy machine
slows both; processor time counts all threads.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.cases import ROOT
from benchmarks.crf import LABEL_BOUNDS, available_threads, progress
from deeplab_crf import DenseCRF
from deeplab_crf.cli.options import DatasetName
from deeplab_crf.core.presets import PRESETS, Preset, get_preset
from deeplab_crf.data.datasets import Example, SegmentationFolder, open_dataset
from deeplab_crf.evaluation.evaluate import FileScores, NetworkScores, ScoreSource, Task, evaluate, predict, top_labels
from deeplab_crf.evaluation.saved_scores import write_saved_scores
from deeplab_crf.evaluation.trimap import TrimapScores, band_widths
from deeplab_crf.models import VARIANTS, SegmentationPipeline, build_model, load_model
from deeplab_crf.models.interp import padded_size

GOAL = 6.0  # of the loop with CRF, at 101 images and two cores
DATA = f"camvid:{ROOT.parent / 'shared' / 'data' / 'camvid'}:val"
DEFAULT_PRESETS = ("pydensecrf", "deeplab-v1-largefov-pydensecrf", "deeplab-v2-resnet101")
CRF_ALONE, WHOLE = "CRF alone", "network and CRF"
TURN = 5  # images


def peer_module() -> Any:
    """pydensecrf's module. Raises SystemExit that says what to install."""
    try:
        import pydensecrf.densecrf
    except ImportError:
        raise SystemExit("benchmarks.evaluate needs the peer: pip install pydensecrf2") from None
    return pydensecrf.densecrf


def peer_labels(preset: Preset, image: NDArray[np.uint8], logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    """pydensecrf2's labels (H, W) for the preset: the script that everybody has, energies the negated logits as in our layer."""
    module = peer_module()
    labels, height, width = logits.shape
    gaussian, bilateral = preset.kernels
    normalization = getattr(module, f"NORMALIZE_{preset.normalization.upper()}")
    crf = module.DenseCRF2D(width, height, labels)
    crf.setUnaryEnergy(np.ascontiguousarray(-logits.reshape(labels, -1)))
    crf.addPairwiseGaussian(sxy=gaussian.widths_axes(2), compat=gaussian.weight, normalization=normalization)
    crf.addPairwiseBilateral(
        sxy=bilateral.widths_axes(2),
        srgb=bilateral.widths_channels(3),
        rgbim=np.ascontiguousarray(image),
        compat=bilateral.weight,
        normalization=normalization,
    )
    result = np.asarray(crf.inference(preset.iterations)).argmax(axis=0)
    return result.reshape(height, width).astype(np.uint8)


@torch.no_grad()
def peer_loop(
    dataset: SegmentationFolder, source: ScoreSource, preset: Preset, indices: Sequence[int]
) -> tuple[TrimapScores, TrimapScores]:
    """Before and after the CRF, image after image."""
    network, refined = (TrimapScores(len(dataset.classes)) for _ in range(2))
    for index in indices:
        example = dataset[index]
        logits = source.logits(example)
        widths = band_widths(example.labels, "boundary")
        network.add(top_labels(logits), example.labels, widths)
        refined.add(peer_labels(preset, example.image, logits.numpy()), example.labels, widths)
    return network, refined


@dataclass
class Race:
    """One loop with one preset. Seconds on the clock of every turn; processor seconds of all; mean IoU after the CRF; threads of
    the peer's network."""

    loop: str
    preset: str
    agreement: float
    peer_threads: int = 1
    peer: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    peer_processor: float = 0.0
    ours_processor: float = 0.0
    peer_iou: float = float("nan")
    ours_iou: float = float("nan")

    @property
    def speedup(self) -> float:
        """Of all images."""
        return sum(self.peer) / sum(self.ours)

    @property
    def middle_speedup(self) -> float:
        """The median over the turns."""
        return median(peer / ours for peer, ours in zip(self.peer, self.ours, strict=True))


def agreement(task: Task, source: ScoreSource, preset: Preset, count: int) -> float:
    """Share of equal labels of the first images."""
    equal = []
    for index in range(count):
        ours = predict(task, index)
        with torch.no_grad():
            logits = source.logits(ours.example).numpy()
        equal.append(float((ours.crf == peer_labels(preset, ours.example.image, logits)).mean()))
    return float(np.mean(equal))


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, seconds on the clock, seconds of all processors."""
    clock, processor = time.perf_counter(), time.process_time()
    result = run()
    return result, time.perf_counter() - clock, time.process_time() - processor


@torch.no_grad()
def fastest_threads(dataset: SegmentationFolder, source: ScoreSource, threads: int) -> int:
    """1 or ``threads``, by the best of three runs on the first image."""
    example, seconds = dataset[0], {}
    for count in (1, threads):
        torch.set_num_threads(count)
        source.logits(example)
        seconds[count] = min(timed(lambda: source.logits(example))[1] for _ in range(3))
    return min(seconds, key=lambda count: seconds[count])


def race(loop: str, preset_name: str, task: Task, peer_source: ScoreSource, threads: int) -> Race:
    """Compare, then take turns."""
    preset, dataset, count = get_preset(preset_name), task.dataset, len(task.dataset)
    result = Race(loop, preset_name, agreement(task, peer_source, preset, min(3, count)))
    result.peer_threads = fastest_threads(dataset, peer_source, threads)
    torch.set_num_threads(result.peer_threads)  # `evaluate` leaves it as it is
    ours, theirs = TrimapScores(len(dataset.classes)), TrimapScores(len(dataset.classes))
    turn = TURN * threads
    for start in range(0, count, turn):
        indices = range(start, min(start + turn, count))
        (_, refined), seconds, processor = timed(lambda: peer_loop(dataset, peer_source, preset, indices))  # noqa: B023
        theirs.merge(refined)
        result.peer.append(seconds)
        result.peer_processor += processor
        evaluation, seconds, processor = timed(lambda: evaluate(task, indices, workers=threads))  # noqa: B023
        ours.merge(evaluation.crf)
        result.ours.append(seconds)
        result.ours_processor += processor
        progress(f"{loop}, {preset_name}: {indices[-1] + 1} of {count} images, {result.speedup:.1f}x")
    result.peer_iou, result.ours_iou = theirs.whole.mean_iou, ours.whole.mean_iou
    return result


def make_scores(dataset: SegmentationFolder, folder: Path, seed: int = 0) -> None:
    """Scores as a network's at output stride 8: smoothed labels and noise."""
    rng = np.random.default_rng(seed)
    for index in range(len(dataset)):
        example = dataset[index]
        size = tuple(padded_size(length, 8) for length in example.labels.shape)
        cells = tuple((length - 1) // 8 + 1 for length in size)
        shares = np.stack([example.labels == label for label in range(len(dataset.classes))]).astype(np.float32)
        coarse = F.interpolate(torch.from_numpy(shares)[None], size=cells, mode="area")[0].numpy()
        scores = 2 * np.log(coarse + 0.02) + rng.normal(0.0, 1.5, coarse.shape)
        write_saved_scores(folder / f"{example.name}.npz", scores, (size[0], size[1]))


class NetworkThenFiles:
    """The time of a network, the scores of files."""

    def __init__(self, network: ScoreSource, files: ScoreSource) -> None:
        self.network, self.files = network, files

    def logits(self, example: Example) -> torch.Tensor:
        """See `ScoreSource`."""
        self.network.logits(example)
        return self.files.logits(example)


def network_source(options: argparse.Namespace, classes: int, files: ScoreSource, *, fused: bool) -> ScoreSource:
    """A network, without padding beyond the strides."""
    torch.manual_seed(0)
    network = load_model(options.weights)[0] if options.weights else build_model(options.model, classes).eval()
    source = NetworkScores(SegmentationPipeline(network, None, pad_to=1, fused=fused))
    return source if options.weights else NetworkThenFiles(source, files)


def measure(options: argparse.Namespace, folder: Path) -> list[Race]:
    """All races."""
    dataset = open_dataset(*options.data)
    count, classes = min(options.images, len(dataset)), len(dataset.classes)
    dataset.items = dataset.items[:count]
    if options.scores is None:
        make_scores(dataset, folder)
    files = FileScores(dataset, options.scores or folder)
    fused, plain = (network_source(options, classes, files, fused=fused) for fused in (True, False))
    races = []
    for preset in options.presets:
        crf = DenseCRF.from_preset(preset, classes)
        for loop, ours, peer in ((CRF_ALONE, files, files), (WHOLE, fused, plain)):
            races.append(race(loop, preset, Task(dataset, ours, crf), peer, options.threads))
    return races


def good(result: Race) -> bool:
    """Whether labels agree as well as in `benchmarks.crf`."""
    bilateral = get_preset(result.preset).kernels[1]
    return result.agreement >= LABEL_BOUNDS[min(bilateral.widths_channels(3)) < 10]


def markdown(races: Sequence[Race], count: int, environment: dict[str, Any]) -> str:
    """The table, under the machine that it was measured on."""
    rows = [
        [
            f"{each.loop}, {each.preset}",
            *(report.milliseconds(sum(seconds) / count) for seconds in (each.peer, each.ours)),
            report.times(each.speedup),
            report.times(each.middle_speedup),
            report.times(each.peer_processor / each.ours_processor),
            f"{each.agreement:.3%}",
            f"{100 * each.peer_iou:.2f} / {100 * each.ours_iou:.2f}",
        ]
        for each in races
    ]
    header = ["loop, preset", "pydensecrf2 (ms an image)", "ours (ms an image)", "speed-up", "median of the turns"]
    header += ["processor time", "labels equal", "mean IoU, theirs / ours"]
    missed = [f"{each.loop}, {each.preset}" for each in races if each.speedup < GOAL]
    lines = [
        f"{environment['processor']}, {environment['instruction set']}, {environment['threads'][0]} thread(s); Python "
        f"{environment['python']}, torch {environment['torch']}; commit {environment['commit']}, {environment['date']}. "
        f"Data: {environment['image']}, {count} images. Command: `{environment['command']}`. They take turns.",
        f"- wanted {GOAL:g}x: {'MISSED by ' + '; '.join(missed) if missed else 'reached'}",
        report.table(header, rows),
    ]
    return "\n\n".join(lines) + "\n"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--data", default=DATA, metavar="KIND:ROOT:SPLIT", help="(%(default)s)")
    parser.add_argument("--images", type=int, default=101, help="the first so many (%(default)s)")
    parser.add_argument("--scores", type=Path, metavar="FOLDER", help="made from the labels by default")
    parser.add_argument(
        "--model", choices=list(VARIANTS), default="v2-compact-aspp", metavar="NAME", help="(%(default)s)"
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a trained network's; random by default")
    parser.add_argument("--presets", default=",".join(DEFAULT_PRESETS), metavar="NAMES", help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=available_threads(), help="all processors by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every single measurement")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table")
    options = parser.parse_args(arguments)
    for name in ("images", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"argument --{name}: must be at least 1; got {getattr(options, name)}")
    try:
        options.data = DatasetName().convert(options.data, None, None)
    except click.BadParameter as error:
        parser.error(f"argument --data: {error}")
    options.presets = options.presets.split(",")
    unknown = [preset for preset in options.presets if preset not in PRESETS]
    if unknown:
        parser.error(f"argument --presets: must be among {', '.join(PRESETS)}; got {', '.join(unknown)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the files. 1 if labels differ."""
    options = parse_arguments(arguments)
    peer_module()
    with tempfile.TemporaryDirectory() as folder:
        races = measure(options, Path(folder))
    kind, root, split = options.data
    where = report.environment(f"{kind}-{split}", [options.threads]) | {"torch": torch.__version__}
    where["command"] = ("python -m benchmarks.evaluate " + " ".join(sys.argv[1:])).strip()
    count = min(options.images, len(open_dataset(kind, root, split)))
    text = markdown(races, count, where)
    print(text)
    if options.markdown:
        options.markdown.write_text(text)
    if options.json:
        options.json.write_text(json.dumps({"environment": where, "races": [asdict(each) for each in races]}, indent=1))
    bad = [each for each in races if not good(each)]
    for each in bad:
        progress(f"LABELS DIFFER: {each.loop}, {each.preset}: {each.agreement:.3%} equal")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
