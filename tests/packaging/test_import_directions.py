"""Imports run downwards: a package imports only packages of lower levels, as docs/architecture.md draws them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

# From the lowest level to the highest. Packages of one level do not import each other.
LEVELS = (
    ("_native", "_cuda", "_lazy"),
    ("runtime",),
    ("core",),
    ("data", "ops"),
    ("crf", "nn"),
    ("models", "pydensecrf"),
    ("benchmark", "evaluation"),
    ("training",),
    ("tuning",),
    ("cli",),
    ("__init__", "__main__"),
)
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
MOST_AT_TOP_LEVEL = 16


def package() -> Path:
    spec = find_spec("deeplab_crf")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def imported_parts(source: Path) -> Iterator[str]:
    """The packages and modules at the top level of deeplab_crf that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "deeplab_crf":
                yield parts[1] if len(parts) > 1 and parts[1] in LEVEL_OF else "__init__"


def test_every_package_has_a_level() -> None:
    found = {
        path.stem if path.is_file() else path.name
        for path in package().iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert found <= set(LEVEL_OF)
    assert len(found) <= MOST_AT_TOP_LEVEL


def test_imports_run_downwards() -> None:
    root = package()
    wrong = []
    for source in sorted(root.rglob("*.py")):
        relative = source.relative_to(root)
        if "stub" in relative.parts:
            continue
        own = relative.parts[0].removesuffix(".py")
        others = set(imported_parts(source)) - {own}
        wrong += [f"{relative} imports {other}" for other in sorted(others) if LEVEL_OF[other] >= LEVEL_OF[own]]
    assert not wrong
