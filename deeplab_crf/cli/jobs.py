"""Existing results, and runs over many files with a progress bar and failures reported at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Generic, TypeVar

import click

from deeplab_crf.cli.interrupts import remembered_interrupts
from deeplab_crf.cli.memory import out_of_memory
from deeplab_crf.data.results import Job, ResultFolder
from deeplab_crf.runtime.files import check_writable, error_text

OVERWRITE, SKIP = "overwrite", "skip"

J = TypeVar("J", bound=Job)


def existing_options(command: Any) -> Any:
    """Add ``--overwrite`` and ``--skip-existing`` as ``existing``: OVERWRITE, SKIP or None."""
    options = (
        click.option("--overwrite", "existing", flag_value=OVERWRITE, help="Make everything anew, whatever exists."),
        click.option(
            "--skip-existing",
            "existing",
            flag_value=SKIP,
            help="Keep results that exist, whatever they were made from.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def may_write(outputs: Sequence[Path], existing: str | None) -> bool:
    """Return whether to make a single result; if it is skipped, say so.

    Args:
        outputs: Its files, the most important one last.
        existing: OVERWRITE, SKIP or None.

    Raises:
        UsageError: A file exists and ``existing`` is None.
        ValueError: The folder is not writable.
    """
    there = [path for path in outputs if os.path.lexists(path)]
    if existing == SKIP and outputs[-1] in there:
        click.echo(f"{outputs[-1]} exists, skipped")
        return False
    if there and existing is None:
        raise click.UsageError(f"{there[0]} exists; --overwrite replaces it, --skip-existing keeps it")
    check_writable(outputs[-1].parent)
    return True


class JobRun(Generic[J]):
    """The jobs of a command that writes into a folder. ``pending`` are those to run.

    Args:
        jobs: All jobs.
        results: The folder.
        existing: None leaves out jobs with current results, SKIP those with any results, OVERWRITE
            none.

    Raises:
        ValueError: A file of unknown origin exists and ``existing`` is None, or the folder is not
            writable.
    """

    def __init__(self, jobs: Sequence[J], results: ResultFolder, existing: str | None) -> None:
        self._total, self._results, self._existing = len(jobs), results, existing
        self._made = self._made_again = 0
        if existing is None:
            results.check_known(jobs)
        quick = existing is not None or results.is_new
        with nullcontext(jobs) if quick else click.progressbar(jobs, label="check", file=sys.stderr) as bar:
            self.pending = [job for job in bar if not self.is_done(job)]
        if self.pending:
            check_writable(results.folder)

    def is_done(self, job: Job) -> bool:
        """Return whether the results of ``job`` exist and can stay."""
        if self._existing == SKIP:
            return os.path.lexists(job.outputs[-1])  # the last one: the others were written before it
        return self._existing is None and self._results.is_current(job)

    def run(self, work: Callable[[J], None], label: str) -> list[str]:
        """Run every pending job. Ctrl-C stops it.

        Args:
            work: Runs a job.
            label: The label of the progress bar.

        Returns:
            One line for each failure, which names the file.
        """
        failures: list[str] = []
        if not self.pending:
            return failures
        progress = click.progressbar(
            self.pending,
            label=label,
            file=sys.stderr,
            item_show_func=lambda job: job.inputs[0].name if job is not None else "",
        )
        with remembered_interrupts() as check_interrupts, progress as bar:
            for job in bar:
                again = any(os.path.lexists(path) for path in job.outputs)
                try:
                    with self._results.making(job):
                        work(job)
                    self._made, self._made_again = self._made + (not again), self._made_again + again
                except Exception as error:  # whatever it is, one bad file must not cost the other 999
                    failures.append(_explain(error, job.inputs))
                check_interrupts()
        return failures

    def summary(self) -> str:
        """Return the number of jobs that are done, and how, for the last line of output."""
        kept = self._total - len(self.pending)
        changed = " because inputs, settings or results had changed" if self._existing is None else ""
        counts = {
            "made": self._made,
            f"made again{changed}": self._made_again,
            "skipped because they exist" if self._existing == SKIP else "up to date": kept,
        }
        parts = ", ".join(f"{count} {text}" for text, count in counts.items() if count)
        return f"{sum(counts.values())} of {self._total} done" + (f": {parts}" if parts else "")


def _explain(error: Exception, paths: tuple[Path, ...]) -> str:
    context = click.get_current_context(silent=True)
    memory = out_of_memory(error, context.info_name if context else None)
    text = memory or " ".join(error_text(error).split())
    if memory is None and not isinstance(error, (ValueError, TypeError, OSError)):
        text = f"{type(error).__name__}: {text}"
    return text if any(str(path) in text for path in paths) else f"{paths[0]}: {text}"


def report_failures(failures: Sequence[str]) -> int:
    """List failures on stderr; return the exit status, 1 if there are any."""
    if failures:
        click.echo(f"Error: {len(failures)} failed:", err=True)
        for failure in failures:
            click.echo(f"  {failure}", err=True)
    return 1 if failures else 0
