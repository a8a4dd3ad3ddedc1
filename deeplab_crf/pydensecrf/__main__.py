"""``python -m deeplab_crf.pydensecrf script.py ...``: runs an unchanged script of pydensecrf's on the drop-in."""

from __future__ import annotations

from deeplab_crf.pydensecrf._run import main

if __name__ == "__main__":
    main()
