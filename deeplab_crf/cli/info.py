"""``deeplab-crf info``: report what was built and what this machine can use."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from typing import Any

import click

from deeplab_crf.runtime.info import native_info

PACKAGES = ("numpy", "pillow", "click", "torch", "safetensors", "h5py", "pydensecrf", "pydensecrf2")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def info(as_json: bool) -> None:
    """Report what was built and what this machine can use, and hints for what is missing."""
    facts = collect()
    click.echo(json.dumps(facts, indent=2) if as_json else _as_text(facts))


def collect() -> dict[str, Any]:
    """Return build information and package versions, None where not installed."""
    return {
        "native": native_info(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _as_text(facts: dict[str, Any]) -> str:
    native = facts["native"]
    cpu, cuda = native["cpu"], native["cuda"]
    if cuda["usable"]:
        gpu = f"usable, {cuda['devices']} device(s)"
    else:
        gpu = f"not usable ({'built' if cuda['built'] else 'not built'}): {cuda['why']}. {cuda['cure']}"
    if cuda["built"]:
        gpu += f"; built by {cuda['compiler']} for {cuda['architectures']}"
    rows = {
        "deeplab-crf": native["version"],
        "compiler": native["compiler"],
        "cpu": f"{cpu['active']} in use; this machine has {cpu['detected']}; built for {', '.join(cpu['compiled'])}",
        "threads": str(native["threads"]),
        "cuda": gpu,
        "python": f"{facts['python']} on {facts['platform']}",
    }
    rows |= {name: version or "not installed" for name, version in facts["packages"].items()}
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())
