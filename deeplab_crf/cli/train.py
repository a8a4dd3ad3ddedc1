"""``deeplab-crf train``: train a network on images and labels."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deeplab_crf.cli.interrupts import deferred_interrupts
from deeplab_crf.cli.network import needs_torch
from deeplab_crf.cli.options import out_option
from deeplab_crf.training.run_folder import RunFolder
from deeplab_crf.training.settings import Kind, TrainSettings, make_settings, read_values

if TYPE_CHECKING:
    from deeplab_crf.training.log import Row

INTERRUPTED = 130
SECONDS_BETWEEN_LINES = 30.0


def numbers(text: str) -> tuple[float, ...]:
    """Parse numbers separated by commas; raise BadParameter for other texts."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number, or several separated by commas") from None


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each field of `TrainSettings`; options that are not given are None."""
    for each in reversed(fields(TrainSettings)):
        kind: Kind = each.metadata["kind"]
        option = "--" + each.name.replace("_", "-")
        if kind.type is bool:
            option = f"{option}/--no-{option[2:]}"
        click_types: dict[type, Any] = {str: str, int: int, float: float, bool: bool, tuple: numbers}
        known = click.Choice(kind.choices) if kind.choices else click_types[kind.type]
        command = click.option(option, each.name, type=known, default=None, help=kind.text + _default(each.default))(
            command
        )
    return command


def _default(value: Any) -> str:
    if value is MISSING or value is None or value == "":
        return ""
    if isinstance(value, bool):
        return f" [default: {'yes' if value else 'no'}]"
    return f" [default: {','.join(f'{each:g}' for each in value) if isinstance(value, tuple) else value}]"


@click.command()
@click.argument("config", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@out_option("Folder for checkpoint, log and weights.")
@click.option("--resume", is_flag=True, help="Continue from FOLDER/checkpoint.pt, by default with FOLDER's settings.")
@click.option("--overwrite", is_flag=True, help="Replace a training in FOLDER.")
@setting_options
def train(config: Path | None, out: Path, resume: bool, overwrite: bool, **options: Any) -> int:
    """Train a network with the settings of CONFIG, a TOML file. Options override it.

    --model, --data and --root are required in either place. Writes FOLDER/weights.safetensors for
    `segment` at the end. Ctrl-C finishes the iteration, saves the state and stops. On several GPUs:
    torchrun -m deeplab_crf train ... See docs/training-deeplab.md.
    """
    if resume and overwrite:
        raise click.UsageError("--resume goes on and --overwrite begins anew: give one of them")
    folder = RunFolder(out)
    if config is None and resume:
        folder.existing_checkpoint()  # without a training there are no settings either: say what is missing first
        config = folder.settings if folder.settings.is_file() else None
    values = {} if config is None else read_values(config)
    settings = make_settings(values | {name: value for name, value in options.items() if value is not None})
    with needs_torch("train", "train"):
        from deeplab_crf.training.train import train as run  # loads torch, which takes seconds: not for --help
    with deferred_interrupts() as interrupted, Progress(settings.iterations) as progress:
        try:
            outcome = run(
                settings, out, resume=resume, overwrite=overwrite, report=progress, note=note, should_stop=interrupted
            )
        except FloatingPointError as error:
            raise click.ClickException(str(error)) from error
    if outcome is None:  # one of torchrun's processes; another one speaks
        return 0
    if not outcome.finished:
        click.echo(
            f"Stopped after iteration {outcome.iteration} of {settings.iterations}, which is kept. Go on with: "
            f"deeplab-crf train -o {out} --resume",
            err=True,
        )
        return INTERRUPTED
    scores = [row.mean_iou for row in outcome.rows if row.mean_iou is not None]
    found = f", validation mIoU {scores[-1]:.4f} without CRF" if scores else ""
    void = sum(row.loss is None for row in outcome.rows)
    if void:
        note(f"in {void} of {outcome.iteration} iterations no pixel was labelled; they changed nothing")
    click.echo(f"{outcome.iteration} iterations done{found}; results in {out}")
    return 0


def note(text: str) -> None:
    """Print a note on the data on stderr."""
    click.echo(f"Note: {text}", err=True)


class Progress:
    """Reports progress on stderr: a bar in a terminal, else occasional lines."""

    def __init__(self, iterations: int) -> None:
        self.iterations, self.first = iterations, 0
        self.began = self.spoke = time.monotonic()
        self.score = ""
        self.bar: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.render_finish()

    def __call__(self, row: Row) -> None:
        """Report an iteration."""
        if row.mean_iou is not None:
            self.score = f", mIoU {row.mean_iou:.3f} at {row.iteration}"
        loss = "none, no pixel is labelled" if row.loss is None else f"{row.loss:.3f}"
        text = f"loss {loss}, lr {row.learning_rate:.2g}, {row.images_per_second:.1f} images/s{self.score}"
        if sys.stderr.isatty():
            self._show(row, text)
        else:
            self._print(row, text)

    def _show(self, row: Row, text: str) -> None:
        if self.bar is None:
            left = self.iterations - row.iteration + 1
            self.bar = click.progressbar(
                length=left, label="train", file=sys.stderr, show_pos=True, item_show_func=lambda item: item
            )
        self.bar.update(1, text)

    def _print(self, row: Row, text: str) -> None:
        now = time.monotonic()
        if self.first == 0:
            self.first, self.began = row.iteration, now
        elif row.mean_iou is None and now - self.spoke < SECONDS_BETWEEN_LINES and row.iteration < self.iterations:
            return
        self.spoke = now
        done = row.iteration - self.first
        left = (now - self.began) / done * (self.iterations - row.iteration) if done else 0.0
        ending = f", {_clock(left)} left" if left else ""
        click.echo(f"iteration {row.iteration} of {self.iterations}: {text}{ending}", err=True)


def _clock(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
