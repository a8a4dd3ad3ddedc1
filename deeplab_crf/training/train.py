"""The training loop and the files that it writes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from deeplab_crf.data.transforms import Augmentation
from deeplab_crf.models.deeplab import DeepLab, build_model
from deeplab_crf.models.metadata import Usage
from deeplab_crf.models.weights.load import load_weights, save_weights
from deeplab_crf.models.weights.names import FORMAT
from deeplab_crf.runtime.files import atomic_write
from deeplab_crf.runtime.processes import World, join_world
from deeplab_crf.training.average import make_average
from deeplab_crf.training.batch_loss import BatchLoss
from deeplab_crf.training.checkpoint import TrainingState, describe_data, load_checkpoint, save_checkpoint
from deeplab_crf.training.class_weights import class_weights
from deeplab_crf.training.curves import plot_curves
from deeplab_crf.training.log import Log, Row, read_log
from deeplab_crf.training.optimizer import make_optimizer, set_learning_rate
from deeplab_crf.training.run_folder import RunFolder
from deeplab_crf.training.samples import Batch, Crops, batches
from deeplab_crf.training.schedule import learning_rate
from deeplab_crf.training.settings import TrainSettings, write_settings
from deeplab_crf.training.splits import open_splits
from deeplab_crf.training.validation import validate


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Args:
        iteration: Iterations that are done.
        finished: Whether these are all of them.
        rows: The rows of the log.
    """

    iteration: int
    finished: bool
    rows: tuple[Row, ...]


def train(
    settings: TrainSettings,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    report: Callable[[Row], None] = lambda row: None,
    note: Callable[[str], None] = lambda text: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome | None:
    """Train a network into a folder; see `RunFolder` for its files. Sets torch's seed.

    Under torchrun, every process calls this with the same arguments. What was reached before an
    error is kept.

    Args:
        settings: The settings of the training.
        out: The folder.
        resume: Continue from the folder's checkpoint. With the settings that it was made with, the
            weights become, bit for bit, those of a training that was never interrupted.
        overwrite: Begin anew where there is a training.
        report: Called after each iteration, in the main process.
        note: Called in the main process before the first iteration, with a sentence on images that
            are held back or seen twice, on classes without a pixel, or on how starting weights were
            read.
        should_stop: Called in each iteration; True ends the training after it, with its state kept.

    Returns:
        The outcome in the main process, None in the others.

    Raises:
        ValueError: Settings or data are not possible, or nothing can be learnt from them.
        FloatingPointError: The loss became NaN or inf.
        ChildProcessError: A process that reads data died.
        OSError: A file cannot be written.
    """
    _check_packages(settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    world = join_world(settings.device)
    parts = settings.accumulate * world.size
    if settings.batch % parts:
        raise ValueError(
            f"batch must be a multiple of accumulate x processes, {settings.accumulate} x {world.size}; got {settings.batch}"
        )
    training = Training(settings, RunFolder(out), world)
    for text in training.splits.notes if world.is_main else ():
        note(text)
    for text in training.begin(resume=resume, overwrite=overwrite):
        note(text)
    return training.run(report, should_stop)


def _check_packages(settings: TrainSettings) -> None:
    """Check now for packages that are needed only later."""
    if find_spec("safetensors") is None:
        raise ImportError('saving weights needs safetensors: pip install "deeplab-crf[train]"')
    if settings.tensorboard and find_spec("tensorboard") is None:
        raise ImportError("tensorboard = true needs TensorBoard: pip install tensorboard")


class Training:
    """A training in progress. ``iteration`` is the number of iterations that are done.

    Args:
        settings: The settings of the training.
        folder: Where its files are.
        world: The processes that train together.
    """

    def __init__(self, settings: TrainSettings, folder: RunFolder, world: World) -> None:
        self.settings, self.folder, self.world = settings, folder, world
        self.iteration = 0
        self.splits = open_splits(settings, world)
        self.dataset, self.validation = self.splits.train, self.splits.validation
        self.network = self._new_network()
        self.optimizer = make_optimizer(self.network, settings)
        scaler = torch.amp.GradScaler(world.device.type, enabled=settings.amp == "float16")
        average = make_average(self.network, settings.average) if settings.average else None
        self.state = TrainingState(self.network, self.optimizer, scaler, average, describe_data(self.dataset))

    def _new_network(self) -> DeepLab:
        settings = self.settings
        torch.manual_seed(settings.seed)
        network = build_model(settings.model, len(self.dataset.classes), settings.multi_scale)
        network.usage = Usage(self.dataset.classes, settings.longer_side or None)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network.to(self.world.device).train()

    def begin(self, *, resume: bool, overwrite: bool) -> list[str]:
        """Prepare folder and state.

        Args:
            resume: Continue from the folder's checkpoint.
            overwrite: Begin anew where there is a training.

        Returns:
            In the main process, notes on the starting weights.
        """
        notes = []
        if resume:
            self.iteration = load_checkpoint(self.folder.existing_checkpoint(), self.state, self.settings)
        elif self.settings.init:
            usage = self.network.usage  # of this training, however the file's network resizes
            read = load_weights(self.network, self.settings.init, classifier=not self.settings.new_classifier)
            self.network.usage = usage
            if read.format != FORMAT:
                notes = [f"{read.path}: {read.format} names; its input: {read.input}", *filter(None, (read.taken,))]
        if not self.world.is_main:
            return []
        if not resume:
            self.folder.claim(overwrite=overwrite)
            if self.splits.held_back:
                with atomic_write(self.folder.held_back) as stream:
                    stream.write(("\n".join(self.splits.held_back) + "\n").encode())
            self.save()
        write_settings(self.settings, self.folder.settings)
        return notes

    def run(self, report: Callable[[Row], None], should_stop: Callable[[], bool]) -> Outcome | None:
        """Run the remaining iterations and write the results.

        Args:
            report: Called after each iteration, in the main process.
            should_stop: Called in each iteration; True ends the training after it.

        Returns:
            The outcome; None except in the main process.
        """
        if not self.world.is_main:
            for _ in self._iterations(should_stop):
                pass
            return None
        log = Log(self.folder.log, self.iteration, tensorboard=self.settings.tensorboard)
        with log, closing(self._iterations(should_stop)) as iterations:
            for row, is_last in iterations:
                log.add(row)
                report(row)
                if is_last or self.iteration % self.settings.checkpoint_every == 0:
                    self.save()
        rows, finished = tuple(read_log(self.folder.log)), self.iteration == self.settings.iterations
        if finished and all(row.loss is None for row in rows):
            raise ValueError(
                f"nothing was learnt in {self.iteration} iterations: no crop held a labelled pixel where scores stand, which is in "
                f"every 8th row and column. Look at the labels of {self.settings.train_split}, or take a larger crop"
            )
        plot_curves(rows, self.folder.curves)
        if finished:
            save_weights(self.state.result, self.folder.weights)
        return Outcome(self.iteration, finished, rows)

    def _iterations(self, should_stop: Callable[[], bool]) -> Generator[tuple[Row, bool]]:
        """Run one iteration after the other; yield each one's row, and whether it is the last."""
        settings, world = self.settings, self.world
        weight = class_weights(settings.class_weights, self.dataset)
        loss = BatchLoss(self.network, settings.amp, world, None if weight is None else weight.to(world.device))
        augmentation = Augmentation(settings.crop, settings.scales, settings.mirror, settings.colour)
        crops = Crops(self.dataset, augmentation, settings.seed)
        is_last = self.iteration == settings.iterations
        with closing(batches(crops, settings, world, self.iteration)) as following:
            while not is_last:
                began = time.perf_counter()
                parts = self._next(following)
                rate = learning_rate(settings, self.iteration)
                value = self._descend(loss, parts, rate)
                stopped = world.sum(torch.tensor(int(should_stop()), device=world.device))
                is_last = self.iteration == settings.iterations or bool(stopped)
                seconds = time.perf_counter() - began
                yield Row(self.iteration, value, rate, settings.batch / seconds, *self._validated()), is_last

    def _next(self, following: Iterator[list[Batch]]) -> list[Batch]:
        try:
            return next(following)
        except Exception:
            if self.world.is_main:
                self.save()  # whatever is wrong with the data, the weights are those of a whole iteration
            raise

    def _descend(self, loss: BatchLoss, parts: list[Batch], rate: float) -> float | None:
        """Run one iteration; return its loss, or None if no pixel of its crops is labelled."""
        seed_iteration(self.settings.seed, self.iteration, self.world.rank)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad()
        found = loss.backward(parts, self.state.scaler)
        value = None if found is None else float(found)
        if value is not None:
            if not math.isfinite(value):
                raise FloatingPointError(self._diverged(f"the loss became {value} in iteration {self.iteration + 1}"))
            self.state.scaler.step(self.optimizer)
            self.state.scaler.update()
        if self.state.average is not None:
            self.state.average.update_parameters(self.network)
        self.iteration += 1
        return value

    def _validated(self) -> tuple[float, float] | tuple[()]:
        """Return mean IoU and pixel accuracy if a validation is due."""
        every, last = self.settings.validate_every, self.iteration == self.settings.iterations
        if self.validation is None or not (last or (every and self.iteration % every == 0)):
            return ()
        found = validate(self.state.result, self.validation, self.world)
        return found.mean_iou, found.pixel_accuracy

    def save(self) -> None:
        """Write the checkpoint."""
        try:
            save_checkpoint(self.folder.checkpoint, self.state, self.settings, self.iteration)
        except FloatingPointError as error:
            raise FloatingPointError(self._diverged(str(error))) from error

    def _diverged(self, problem: str) -> str:
        return f"{problem}; the last checkpoint, {self.folder.checkpoint}, is kept. Try a smaller learning_rate"


def seed_iteration(seed: int, iteration: int, rank: int) -> None:
    """Seed torch's draws in an iteration (dropout) from these three numbers alone."""
    torch.manual_seed(
        int(np.random.SeedSequence([seed, iteration, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    )
