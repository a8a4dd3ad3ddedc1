"""Learn a CRF's weights and bandwidths on a network's score maps, and see what it does for images that were held back.

    python -m benchmarks.learn_crf [--steps 100] [--json FILE] [--markdown FILE] [--plot FILE]

The data are five CamVid images with the scores of a small network at an eighth of their size (../shared/data/crf; not in the
repository). Each image is held back once while the CRF learns on the other four. docs/training.md tells what happens here.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks import report
from benchmarks.cases import ROOT
from benchmarks.crf import available_threads, progress
from deeplab_crf import DenseCRF

DATA = ROOT.parent / "shared" / "data" / "crf"
IMAGES = ("0001TP_008550", "0001TP_009450", "Seq05VD_f00540", "Seq05VD_f02040", "Seq05VD_f03540")
IGNORE = 255
START = "pydensecrf"  # where learning begins: the setting that everybody copies
BEST_PUBLISHED = "deeplab-v2-resnet101"  # the best of the presets on these images
WEIGHT_RATE, BANDWIDTH_RATE = 0.1, 0.03  # of Adam; bandwidths are learned as logarithms
LOOK_EVERY = 10  # steps between looks at the held-back image


class LabelledImage(NamedTuple):
    """logits: (1, L, H, W), upsampled as the network's user would. image: (1, 3, H, W) uint8. labels: (1, H, W), 255 where
    unknown."""

    name: str
    logits: Tensor
    image: Tensor
    labels: Tensor


def load_image(name: str, folder: Path) -> LabelledImage:
    """One of the five, by its CamVid name."""
    with Image.open(folder / f"camvid_{name}.png") as file:
        image = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)[None]
    with Image.open(folder / f"camvid_{name}_gt.png") as file:
        labels = torch.from_numpy(np.array(file)).long()[None]
    with np.load(folder / f"camvid_{name}_netprob.npz") as scores:
        small = torch.from_numpy(scores[scores.files[0]].astype(np.float32))[None]
    logits = F.interpolate(small, size=labels.shape[1:], mode="bilinear", align_corners=False)
    return LabelledImage(name, logits, image, labels)


def mean_iou(refined: Tensor, labels: Tensor) -> float:
    """Over the classes of the ground truth, unknown pixels left out."""
    known = labels != IGNORE
    found, true = refined.argmax(1)[known], labels[known]
    shares = []
    for label in true.unique():
        mine, theirs = found == label, true == label
        shares.append(((mine & theirs).sum() / (mine | theirs).sum()).item())
    return float(np.mean(shares))


def soft_iou_loss(refined: Tensor, labels: Tensor) -> Tensor:
    """1 - the mean IoU of probabilities, over the classes of the ground truth: what is wanted, made differentiable.

    (Cross entropy asks for honest probabilities instead, which on these scores is bought with less accurate labels of rare
    classes.)
    """
    known = labels != IGNORE
    q = refined.exp().movedim(1, -1)[known]
    truth = F.one_hot(labels[known], q.shape[1]).to(q.dtype)
    common = (q * truth).sum(0)
    either = (q + truth).sum(0) - common
    return 1 - (common / either)[truth.sum(0) > 0].mean()


@dataclass
class Learning:
    """What happened while one image was held back. losses: one a step. held_back: mean IoU of the image every
    `LOOK_EVERY` steps, from 0. numbers: weights and widths by name at the same steps. seconds: of the steps alone."""

    image: str
    losses: list[float]
    held_back: list[float]
    numbers: list[dict[str, float]]
    seconds: float


def learn(crf: DenseCRF, examples: Sequence[LabelledImage], held_back: LabelledImage, steps: int) -> Learning:
    """``steps`` of Adam, an image each."""
    optimizer = torch.optim.Adam(
        [
            {"params": [crf.weights], "lr": WEIGHT_RATE},
            {"params": [crf.log_sxy, crf.log_srgb], "lr": BANDWIDTH_RATE},
        ]
    )
    learning = Learning(held_back.name, [], [evaluate(crf, held_back)], [numbers(crf)], 0.0)
    for step in range(1, steps + 1):
        example = examples[step % len(examples)]
        began = time.perf_counter()
        loss = soft_iou_loss(crf(example.logits, example.image), example.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learning.seconds += time.perf_counter() - began
        learning.losses.append(loss.item())
        if step % LOOK_EVERY == 0:
            learning.held_back.append(evaluate(crf, held_back))
            learning.numbers.append(numbers(crf))
    return learning


@torch.no_grad()
def evaluate(crf: DenseCRF, example: LabelledImage) -> float:
    """Mean IoU after refinement."""
    return mean_iou(crf(example.logits, example.image), example.labels)


def numbers(crf: DenseCRF) -> dict[str, float]:
    """Weights and widths; widths as geometric means over their axes."""
    return {
        "Gaussian weight": crf.weights[0].item(),
        "Gaussian sxy": crf.log_sxy[0].mean().exp().item(),
        "Bilateral weight": crf.weights[1].item(),
        "Bilateral sxy": crf.log_sxy[1].mean().exp().item(),
        "Bilateral srgb": crf.log_srgb[0].mean().exp().item(),
    }


def cross_validate(examples: Sequence[LabelledImage], steps: int) -> list[Learning]:
    """Hold each image back once."""
    learnings = []
    for held_back in examples:
        others = [example for example in examples if example is not held_back]
        crf = DenseCRF.from_preset(START, trainable=("weights", "bandwidths"))
        learnings.append(learn(crf, others, held_back, steps))
        first, last = learnings[-1].held_back[0], learnings[-1].held_back[-1]
        progress(f"{held_back.name} held back: {first:.4f} -> {last:.4f}, {learnings[-1].seconds:.0f} s")
    return learnings


def table(examples: Sequence[LabelledImage], learnings: Sequence[Learning]) -> str:
    """Mean IoU of every image, learned on the others."""
    published = DenseCRF.from_preset(BEST_PUBLISHED)
    columns = {
        "network": [mean_iou(example.logits, example.labels) for example in examples],
        f"start ({START})": [learning.held_back[0] for learning in learnings],
        "learned on the other four": [learning.held_back[-1] for learning in learnings],
        f"for comparison: {BEST_PUBLISHED}": [evaluate(published, example) for example in examples],
    }
    rows = [
        [example.name, *(f"{column[number]:.4f}" for column in columns.values())]
        for number, example in enumerate(examples)
    ]
    rows.append(["mean", *(f"{np.mean(column):.4f}" for column in columns.values())])
    return report.table(["held back", *columns], rows)


def number_table(learnings: Sequence[Learning]) -> str:
    """Weights and widths at the start and at the end of each learning."""
    rows = [["start", *(f"{value:.3g}" for value in learnings[0].numbers[0].values())]]
    rows += [[learning.image, *(f"{value:.3g}" for value in learning.numbers[-1].values())] for learning in learnings]
    return report.table(["held back", *learnings[0].numbers[0]], rows)


def plot(learnings: Sequence[Learning], path: Path) -> None:
    """Loss, held-back mean IoU, and the numbers over the steps."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    loss_axes, iou_axes, number_axes = figure.subplots(1, 3)
    round_length = len(learnings) - 1
    losses = np.mean([learning.losses for learning in learnings], axis=0)
    means = np.convolve(losses, np.full(round_length, 1 / round_length), "valid")
    loss_axes.plot(range(round_length, len(losses) + 1), means)
    loss_axes.set_ylabel("soft IoU loss on the other four")
    looks = [LOOK_EVERY * look for look in range(len(learnings[0].held_back))]
    for learning in learnings:
        iou_axes.plot(looks, learning.held_back, linewidth=1, alpha=0.6, label=learning.image)
    iou_axes.plot(
        looks, np.mean([learning.held_back for learning in learnings], axis=0), "k", linewidth=2.5, label="mean"
    )
    iou_axes.set_ylabel("mean IoU of the held-back image")
    iou_axes.legend(fontsize="x-small", ncols=2)
    for name in learnings[0].numbers[0]:
        paths = [[look[name] for look in learning.numbers] for learning in learnings]
        number_axes.plot(looks, np.mean(paths, axis=0), label=name)
    number_axes.set_yscale("log")
    number_axes.margins(y=0.25)  # room for the legend
    number_axes.yaxis.set_major_formatter(ScalarFormatter())
    number_axes.yaxis.set_minor_formatter(NullFormatter())
    number_axes.set_ylabel("weights and widths, means")
    number_axes.legend(fontsize="x-small", ncols=2)
    for axes in (loss_axes, iou_axes, number_axes):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learn_crf", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the images (%(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="for each held-back image (100)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="losses, mean IoUs and numbers over the steps")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the tables")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot of the learning (needs matplotlib)")
    options = parser.parse_args(arguments)
    if options.steps < LOOK_EVERY:
        parser.error(f"argument --steps: must be at least {LOOK_EVERY}; got {options.steps}")
    if not options.data.is_dir():
        parser.error(f"argument --data: no such folder: {options.data}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Learn, print the tables, write the files."""
    options = parse_arguments(arguments)
    examples = [load_image(name, options.data) for name in IMAGES]
    learnings = cross_validate(examples, options.steps)
    seconds = sum(learning.seconds for learning in learnings) / (len(learnings) * options.steps)
    text = "\n\n".join(
        [
            f"{report.processor_name()}, {available_threads()} processors; torch {torch.__version__}; commit {report.commit()}. "
            f"Command: `python -m benchmarks.learn_crf {' '.join(sys.argv[1:])}`. {1e3 * seconds:.0f} ms a step.",
            table(examples, learnings),
            number_table(learnings),
        ]
    )
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")
    if options.json:
        data: dict[str, Any] = {"learnings": [asdict(learning) for learning in learnings]}
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    if options.plot:
        plot(learnings, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
