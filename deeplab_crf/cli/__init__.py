"""The ``deeplab-crf`` command, one file per subcommand."""

from __future__ import annotations

import sys
from collections.abc import Sequence

INTERRUPTED = 130  # 128 + SIGINT, what shells report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line with ``argv`` (None: the process's own) and return the exit status.

    0 done, 1 something failed (one line on stderr says what), 2 wrong usage, 130 interrupted with Ctrl-C.
    """
    try:
        from deeplab_crf.cli.app import run  # here, so that Ctrl-C while NumPy loads ends quietly too

        return run(argv)
    except KeyboardInterrupt:
        print("Interrupted; what is written is whole", file=sys.stderr)
        return INTERRUPTED
