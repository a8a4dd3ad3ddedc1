"""The ``deeplab-crf`` command, one file per subcommand."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

INTERRUPTED = 130  # 128 + SIGINT, what shells report
INTERRUPTED_TEXT = "Interrupted; what is written is whole"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    With the process's own arguments, Ctrl-C while modules are imported ends the process at once.

    Args:
        argv: The arguments; None: those of the process.

    Returns:
        The exit status: 0 done, 1 failed (one line on stderr says why), 2 wrong usage, 130
            interrupted with Ctrl-C.
    """
    try:
        if argv is None:
            from deeplab_crf.cli.interrupts import leave_while_importing  # in here too, Ctrl-C may come

            leave_while_importing(INTERRUPTED, INTERRUPTED_TEXT)
        from deeplab_crf.cli.app import run  # here, so that Ctrl-C while NumPy loads ends quietly too

        return run(argv)
    except KeyboardInterrupt:
        print(INTERRUPTED_TEXT, file=sys.stderr)
        return INTERRUPTED
