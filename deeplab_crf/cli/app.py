"""The group of subcommands, and how errors become one line and an exit status."""

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
from deeplab_crf.cli.prune import narrow
from deeplab_crf.cli.refine import refine
from deeplab_crf.cli.segment import segment
from deeplab_crf.cli.train import train
from deeplab_crf.cli.tune import tune
from deeplab_crf.runtime.files import error_text


class Commands(click.Group):
    """Subcommands whose errors about memory say what to do."""

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
    """DeepLab and its dense CRF: segment photographs, and make coarse segmentations follow their edges."""


for command in (segment, refine, train, evaluate, tune, narrow, convert, demo, info, bench):
    group.add_command(command)


def run(argv: Sequence[str] | None) -> int:
    """Run and return the exit status. Raises KeyboardInterrupt on Ctrl-C."""
    try:
        status = group.main(args=argv, prog_name="deeplab-crf", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "deeplab-crf"
        return _fail(f"{error.format_message()} (see {where} --help)", error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except (ValueError, TypeError, OSError, ImportError, MemoryError) as error:
        return _fail(error_text(error), 1)


def _fail(message: str, status: int) -> int:
    click.echo("Error: " + " ".join(message.split()), err=True)
    return status
