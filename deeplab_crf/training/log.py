"""The log of a training: a row for each iteration in a CSV file, and events for TensorBoard."""

from __future__ import annotations

import csv
import io
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from deeplab_crf.runtime.files import atomic_write


@dataclass(frozen=True)
class Row:
    """The log of one iteration.

    Args:
        iteration: Counts from 1.
        loss: The loss of its batch; None if no pixel of the batch is labelled.
        learning_rate: That of the backbone.
        images_per_second: Crops, over all processes.
        mean_iou: The result of the validation after it, without CRF; None where there was none.
        pixel_accuracy: As ``mean_iou``.
    """

    iteration: int
    loss: float | None
    learning_rate: float
    images_per_second: float
    mean_iou: float | None = None
    pixel_accuracy: float | None = None


COLUMNS = tuple(each.name for each in fields(Row))


class Log:
    """Appends rows to a CSV file, and to TensorBoard's ``events`` beside it if asked.

    Args:
        path: The CSV file.
        iteration: Iterations that are done; later rows, of a training that was interrupted, are
            dropped.
        tensorboard: Whether to write events too.
    """

    def __init__(self, path: Path, iteration: int, *, tensorboard: bool) -> None:
        kept = [row for row in read_log(path) if row.iteration <= iteration] if path.exists() else []
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *map(_as_cells, kept)])
        with atomic_write(path) as stream:
            stream.write(text.getvalue().encode())
        self._events = _events(path.parent / "events", iteration) if tensorboard else None
        self._file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115 (closed in __exit__)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()

    def add(self, row: Row) -> None:
        """Write a row; it is in the file when this returns."""
        csv.writer(self._file, lineterminator="\n").writerow(_as_cells(row))
        self._file.flush()
        if self._events is not None:
            for name, value in zip(COLUMNS[1:], astuple(row)[1:], strict=True):
                if value is not None:
                    self._events.add_scalar(name, value, row.iteration)


def read_log(path: Path) -> list[Row]:
    """Read the rows of a log; an incomplete last line is left out.

    Raises:
        ValueError: The file is damaged; the error names it.
    """
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            whole = [line for line in stream if line.endswith("\n")]
        return [
            Row(int(iteration), *(float(cell) if cell else None for cell in numbers))  # type: ignore[arg-type]
            for iteration, *numbers in csv.reader(whole[1:])
        ]
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(
            f"{path}: cannot be read as a training's log ({error}); move it away to go on without it"
        ) from error


def _as_cells(row: Row) -> list[str]:
    return ["" if value is None else repr(value) for value in astuple(row)]


def _events(folder: Path, iteration: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # needs TensorBoard, which most trainings do without

    return SummaryWriter(str(folder), purge_step=iteration + 1)
