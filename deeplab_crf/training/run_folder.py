"""The files of a training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deeplab_crf.runtime.files import remove_leftovers


@dataclass(frozen=True)
class RunFolder:
    """The folder of a training.

    Args:
        path: The folder. It holds ``settings.toml``, ``checkpoint.pt``, ``log.csv``,
            ``curves.png``, at the end ``weights.safetensors``, and with TensorBoard the folder
            ``events``.
    """

    path: Path

    @property
    def settings(self) -> Path:
        """All settings."""
        return self.path / "settings.toml"

    @property
    def checkpoint(self) -> Path:
        """The state of the training, from the beginning on."""
        return self.path / "checkpoint.pt"

    @property
    def held_back(self) -> Path:
        """The names that `val_fraction` held back, as a split's list."""
        return self.path / "val.txt"

    @property
    def log(self) -> Path:
        """A row for each iteration."""
        return self.path / "log.csv"

    @property
    def curves(self) -> Path:
        """A plot of the log."""
        return self.path / "curves.png"

    @property
    def events(self) -> Path:
        """The log for TensorBoard."""
        return self.path / "events"

    @property
    def weights(self) -> Path:
        """The trained weights, for `load_model`."""
        return self.path / "weights.safetensors"

    def claim(self, *, overwrite: bool) -> None:
        """Make the folder for a new training.

        Args:
            overwrite: Remove the files of an earlier training.

        Raises:
            ValueError: The folder is not empty and ``overwrite`` is False.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} must be a folder; it is a file")
        self.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path)
        if not any(self.path.iterdir()):
            return
        if not overwrite:
            raise ValueError(
                f"{self.path} is not empty: go on with --resume, begin anew with --overwrite, or choose another"
            )
        for old in (self.settings, self.checkpoint, self.held_back, self.log, self.curves, self.weights):
            old.unlink(missing_ok=True)
        for events in self.events.glob("events.out.tfevents.*"):
            events.unlink()

    def existing_checkpoint(self) -> Path:
        """Return the path of the checkpoint.

        Raises:
            ValueError: There is none.
        """
        if not self.checkpoint.is_file():
            raise ValueError(f"{self.checkpoint}: no such checkpoint, so there is no training to go on with")
        return self.checkpoint
