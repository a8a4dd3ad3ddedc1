"""The bundled photograph and its coarse labels; NOTICE.md names the source and the licence."""

from __future__ import annotations

from pathlib import Path

PHOTOGRAPH = Path(__file__).with_name("astronaut.jpg")
COARSE_LABELS = Path(__file__).with_name("astronaut_labels.png")
