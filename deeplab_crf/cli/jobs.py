"""Many files, one after the other: a progress bar, and failures kept for the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import click

from deeplab_crf.cli.interrupts import remembered_interrupts
from deeplab_crf.cli.memory import out_of_memory

Job = TypeVar("Job")


def attempt_all(
    jobs: Sequence[Job], work: Callable[[Job], None], label: str, paths: Callable[[Job], tuple[Path, ...]]
) -> list[str]:
    """Do every job; returns one line for each that failed, which says what is wrong with which file. Ctrl-C ends it.

    label: what stands before the progress bar. paths: the files of a job; the first is the one that is shown and blamed.
    """
    failures = []
    progress = click.progressbar(
        jobs, label=label, file=sys.stderr, item_show_func=lambda job: paths(job)[0].name if job is not None else ""
    )
    with remembered_interrupts() as check_interrupts, progress as bar:
        for job in bar:
            try:
                work(job)
            except Exception as error:  # whatever it is, one bad file must not cost the other 999
                failures.append(_explain(error, paths(job)))
            check_interrupts()
    return failures


def _explain(error: Exception, paths: tuple[Path, ...]) -> str:
    context = click.get_current_context(silent=True)
    memory = out_of_memory(error, context.info_name if context else None)
    text = memory or " ".join(str(error).split()) or type(error).__name__
    if memory is None and not isinstance(error, (ValueError, TypeError, OSError)):
        text = f"{type(error).__name__}: {text}"
    return text if any(str(path) in text for path in paths) else f"{paths[0]}: {text}"


def report_failures(failures: Sequence[str]) -> int:
    """Lists them on stderr; returns the exit status, 1 if there are any."""
    if failures:
        click.echo(f"Error: {len(failures)} failed:", err=True)
        for failure in failures:
            click.echo(f"  {failure}", err=True)
    return 1 if failures else 0
