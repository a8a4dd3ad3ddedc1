"""The network that comes with the package: street scenes in CamVid's eleven classes. Its card is README.md beside it."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).with_name("street.safetensors")
