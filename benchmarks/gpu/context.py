"""What a step is given."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.section import Section


@dataclass(frozen=True)
class Context:
    """Plain data: it crosses to the step's process as JSON.

    device: "cuda", or "cpu" for a rehearsal with tiny inputs. image: as of `benchmarks.cases.load_image`. build: whether to install
    the package. folder: of this step alone. deadline: when it has to be done, by ``time.time()``. earlier: `Section.data` of the
    steps before, by name.
    """

    device: str
    image: str
    build: bool
    folder: str
    deadline: float
    earlier: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def rehearsal(self) -> bool:
        """Whether this is no GPU."""
        return self.device == "cpu"

    @property
    def section_file(self) -> Path:
        """Where the step's section is kept."""
        return Path(self.folder) / "section.json"

    def begin(self, title: str) -> Section:
        """The section of this step."""
        return Section(title, str(self.section_file))

    def seconds_left(self) -> float:
        """Until the deadline, less what ending in good order takes."""
        return self.deadline - time.time() - 2.0
