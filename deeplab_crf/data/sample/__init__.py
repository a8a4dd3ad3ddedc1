"""The bundled images, and coarse labels of one; NOTICE.md names the sources and the licences."""

from __future__ import annotations

from pathlib import Path

ASTRONAUT = Path(__file__).with_name("astronaut.jpg")
COARSE_LABELS = Path(__file__).with_name("astronaut_labels.png")
STREET = Path(__file__).with_name("street.jpg")
