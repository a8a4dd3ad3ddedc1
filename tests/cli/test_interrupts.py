"""Ctrl-C while a command imports its modules: one line, status 130, no traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from samples import run_python

from deeplab_crf.data.sample import ASTRONAUT, COARSE_LABELS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to a process there")

# Ctrl-C arrives when the module is asked for, within a callback of the import system, where Python drops KeyboardInterrupt,
# and within an extension module's initialisation, which makes another error of it.
SCRIPT = """
import signal, sys
where, module, *arguments = sys.argv[1:]

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                if where == "before":
                    raise
                raise ImportError("an extension module met an interrupt") from None

sys.meta_path.insert(0, Interrupting())
sys.argv = ["deeplab-crf", *arguments]
from deeplab_crf.cli import main
status = main()
print("it went on")
sys.exit(status)
"""
DATA = ["--data", "folder:nowhere:val"]
COMMANDS = {
    "refine": ["refine", str(ASTRONAUT), str(COARSE_LABELS), "-o", "out.png"],
    "segment": ["segment", str(ASTRONAUT), "-o", "out"],
    "convert": ["convert", str(ASTRONAUT), "out.safetensors"],
    "prune": ["prune", str(ASTRONAUT), "out.safetensors", "--model", "v2-narrow-aspp-l", *DATA],
    "evaluate": ["evaluate", *DATA],
    "tune": ["tune", *DATA, "-o", "out"],
    "train": ["train", "-o", "out", "--model", "v2-compact-aspp", "--data", "folder", "--root", "nowhere"],
    "demo": ["demo", "-o", "out"],
    "info": ["info"],
    "bench": ["bench"],
}
CASES = [(command, "numpy", "within") for command in COMMANDS]
CASES += [(command, "torch", "within") for command in ("segment", "convert", "train")]
CASES += [("refine", "click", "before"), ("refine", "PIL", "before"), ("segment", "torch", "before")]


@pytest.mark.parametrize(("command", "module", "where"), CASES)
def test_ctrl_c_during_imports(command: str, module: str, where: str, tmp_path: Path) -> None:
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    done = run_python(f"import os; os.chdir({str(tmp_path)!r})\n{SCRIPT}", where, module, *COMMANDS[command])
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.splitlines() == ["Interrupted; what is written is whole"]
    assert not any(tmp_path.iterdir())


def test_ctrl_c_at_the_start_of_the_process() -> None:
    """Send SIGINT from outside, as soon as the command has begun to import NumPy."""
    script = """
import sys
class Speaking:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            print("imports", flush=True)
sys.meta_path.insert(0, Speaking())
from deeplab_crf.cli import main
sys.exit(main())
"""
    command = [sys.executable, "-c", script, "refine", str(ASTRONAUT), str(COARSE_LABELS), "-o", "out.png"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "imports\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "Interrupted; what is written is whole"
