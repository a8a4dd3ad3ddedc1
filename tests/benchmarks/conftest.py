"""The benchmarks are not installed: these tests import them from the clone."""

from __future__ import annotations

import sys
from pathlib import Path

# At the end: an installed deeplab_crf comes before the sources.
sys.path.append(str(Path(__file__).resolve().parents[2]))
