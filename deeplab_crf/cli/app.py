"""The group of subcommands. It turns errors into one line and an exit status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from deeplab_crf.cli.bench import bench
from deeplab_crf.cli.convert import convert
from deeplab_crf.cli.demo import demo
from deeplab_crf.cli.evaluate import evaluate
from deeplab_crf.cli.info import info
from deeplab_crf.cli.memory import out_of_memory
from deeplab_crf.cli.prune import prune
from deeplab_crf.cli.refine import refine
from deeplab_crf.cli.segment import segment
from deeplab_crf.cli.train import train
from deeplab_crf.cli.tune import tune
from deeplab_crf.runtime.files import error_text


class Commands(click.Group):
    """Subcommands whose out-of-memory errors say what to do."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand."""
        try:
            return super().invoke(ctx)
        except (RuntimeError, MemoryError) as error:
            text = out_of_memory(error, ctx.invoked_subcommand)
            if text is None:
                raise
            raise click.ClickException(text) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=False)
@click.version_option(package_name="deeplab-crf", prog_name="deeplab-crf")
def group() -> None:
    """Segment images with DeepLab and its dense CRF, and refine coarse segmentations."""


for command in (segment, refine, train, evaluate, tune, prune, convert, demo, info, bench):
    group.add_command(command)


def run(argv: Sequence[str] | None) -> int:
    """Run the command line and return the exit status.

    Raises:
        KeyboardInterrupt: On Ctrl-C.
    """
    try:
        status = group.main(args=argv, prog_name="deeplab-crf", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "deeplab-crf"
        return _fail(f"{error.format_message()} (see {command} --help)", error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except (ValueError, TypeError, OSError, ImportError, MemoryError) as error:
        return _fail(error_text(error), 1)


def _fail(message: str, status: int) -> int:
    click.echo("Error: " + " ".join(message.split()), err=True)
    return status
