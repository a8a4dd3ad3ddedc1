"""``python -m deeplab_crf``: the same as the ``deeplab-crf`` command."""

from __future__ import annotations

from deeplab_crf.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
