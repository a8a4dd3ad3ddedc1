"""The package, installed from these sources for this device."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import torch

from benchmarks.cases import ROOT
from benchmarks.gpu.commands import run_command
from benchmarks.gpu.context import Context
from benchmarks.gpu.section import Section

INSTALL = (
    *(sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--disable-pip-version-check"),
    *("--force-reinstall", "--config-settings=cmake.define.DEEPLAB_CRF_CUDA=ON", str(ROOT)),
)

LOOK = "import json, deeplab_crf as d; print(json.dumps({**d.native_info(), 'path': d.__file__}))"


def measure(context: Context) -> Section:
    """Install, unless it is not wanted; then say what there is."""
    section = context.begin("Build")
    if context.build:
        seconds = context.seconds_left()
        outcome = run_command(INSTALL, context.folder, seconds, {"CUDAARCHS": architecture(context)})
        section.check("installed", outcome.why(seconds), "exit status 0", outcome.code == 0)
        if outcome.code != 0:
            return section.fail(outcome.why(seconds), outcome.lines)
    else:
        section.note("Not built in this run (--no-build): what was installed already is measured.")
    section.data["installed"] = installed(context.folder)
    section.note(described(section.data["installed"]))
    if not context.rehearsal:
        usable = section.data["installed"]["cuda"]["usable"]
        section.check("the CUDA engine is usable", "usable" if usable else "not usable", "usable", bool(usable))
    return section


def architecture(context: Context) -> str:
    """For CUDAARCHS: "90" for compute capability 9.0."""
    if context.rehearsal:
        return "90"
    return "".join(str(part) for part in torch.cuda.get_device_capability())


def installed(folder: str) -> dict[str, Any]:
    """`native_info`, and where it lies: in a fresh process, since this one may know the place of an editable install that is no
    more."""
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"what is installed cannot be imported: {done.stderr.strip()}")
    info: dict[str, Any] = json.loads(done.stdout)
    return info


def described(info: dict[str, Any]) -> str:
    """One line."""
    cuda = info["cuda"]
    engine = (
        f"CUDA engine by {cuda['compiler']} for {cuda['architectures']}" if cuda["built"] else "without CUDA engine"
    )
    return f"deeplab-crf {info['version']}, {engine}, from {info['path']}."
