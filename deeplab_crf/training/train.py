"""The training loop, and the folder that it leaves behind."""

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
    """How a training ended. iteration: how many were done. finished: whether all of them. rows: the log's."""

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
    """Train a network into the folder ``out``: see `RunFolder` for what is written there.

    resume: go on from the folder's checkpoint; with the settings that it was made with the weights become, bit for bit, those
    of a training that was never broken off. overwrite: begin anew where there is something. report: called after each
    iteration, in the process that leads. note: called there, before the first iteration, with what should be known of the data:
    photographs that are held back or seen twice, classes without a pixel; and of starting weights that others made: what they
    were taken for. should_stop: asked in each iteration; True ends the training after it, its state kept. Under torchrun every
    process calls this with the same arguments, and gets None but for the one that leads. Sets torch's seed.

    Raises ValueError for settings and data that cannot be or teach nothing, FloatingPointError where the loss becomes NaN or inf,
    ChildProcessError where a process that reads data died, OSError where the disk is full. What was reached before is kept.
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
    for text in training.splits.notes if world.leads else ():
        note(text)
    for text in training.begin(resume=resume, overwrite=overwrite):
        note(text)
    return training.run(report, should_stop)


def _check_packages(settings: TrainSettings) -> None:
    """What is needed hours later, or in a folder that would be begun for nothing."""
    if find_spec("safetensors") is None:
        raise ImportError('saving weights needs safetensors: pip install "deeplab-crf[train]"')
    if settings.tensorboard and find_spec("tensorboard") is None:
        raise ImportError("tensorboard = true needs TensorBoard: pip install tensorboard")


class Training:
    """A training on its way. iteration: how many are done."""

    def __init__(self, settings: TrainSettings, folder: RunFolder, world: World) -> None:
        self.settings, self.folder, self.world = settings, folder, world
        self.iteration = 0
        self.splits = open_splits(settings, world)
        self.photographs, self.validation = self.splits.train, self.splits.validation
        self.network = self._new_network()
        self.optimizer = make_optimizer(self.network, settings)
        scaler = torch.amp.GradScaler(world.device.type, enabled=settings.amp == "float16")
        average = make_average(self.network, settings.average) if settings.average else None
        self.state = TrainingState(self.network, self.optimizer, scaler, average, describe_data(self.photographs))

    def _new_network(self) -> DeepLab:
        settings = self.settings
        torch.manual_seed(settings.seed)
        network = build_model(settings.model, len(self.photographs.classes), settings.multi_scale)
        network.usage = Usage(self.photographs.classes, settings.longer_side or None)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network.to(self.world.device).train()

    def begin(self, *, resume: bool, overwrite: bool) -> list[str]:
        """Make the folder ready, and the state that of its checkpoint, or new. Returns notes on the starting weights, in the
        process that leads."""
        notes = []
        if resume:
            self.iteration = load_checkpoint(self.folder.existing_checkpoint(), self.state, self.settings)
        elif self.settings.init:
            usage = self.network.usage  # of this training, however the file's network resizes
            read = load_weights(self.network, self.settings.init, classifier=not self.settings.new_classifier)
            self.network.usage = usage
            if read.format != FORMAT:
                notes = [f"{read.path}: {read.format} names; its input: {read.input}", *filter(None, (read.taken,))]
        if not self.world.leads:
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
        """All iterations that are left, and the results; None in processes that do not lead."""
        if not self.world.leads:
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
        """Do one after the other; each one's row, and whether it is the last."""
        settings, world = self.settings, self.world
        weight = class_weights(settings.class_weights, self.photographs)
        loss = BatchLoss(self.network, settings.amp, world, None if weight is None else weight.to(world.device))
        augmentation = Augmentation(settings.crop, settings.scales, settings.mirror, settings.colour)
        crops = Crops(self.photographs, augmentation, settings.seed)
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
            if self.world.leads:
                self.save()  # whatever is wrong with the data, the weights are those of a whole iteration
            raise

    def _descend(self, loss: BatchLoss, parts: list[Batch], rate: float) -> float | None:
        """One iteration; returns its loss. None, and the weights stay as they are, where no pixel of its crops is labelled."""
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
        """Mean IoU and pixel accuracy where a validation is due."""
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

    def _diverged(self, what: str) -> str:
        return f"{what}; the last checkpoint, {self.folder.checkpoint}, is kept. Try a smaller learning_rate"


def seed_iteration(seed: int, iteration: int, rank: int) -> None:
    """Make what torch draws in an iteration, dropout, a function of these three alone."""
    torch.manual_seed(
        int(np.random.SeedSequence([seed, iteration, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    )
