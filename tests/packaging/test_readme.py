"""README.md: its commands are what CI runs, and its examples run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import samples

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
CI = ROOT / ".ci" / "run"

pytestmark = pytest.mark.skipif(not README.exists(), reason="needs the sources")


def blocks(language: str) -> list[str]:
    """Code blocks of README in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def command(name: str) -> str:
    """The code block behind the marker that .ci/run looks for."""
    (found,) = re.findall(
        rf"^<!-- ci: {name} -->\n```bash\n(.*?)^```$", README.read_text(), flags=re.MULTILINE | re.DOTALL
    )
    return found


@pytest.mark.parametrize("name", ["demo", "tests"])
def test_commands_are_one_line_and_complete(name: str) -> None:
    text = command(name)
    assert text.count("\n") == 1, "one line to copy and paste"
    assert text.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert text.rstrip().split(" && ")[-1].startswith(".venv/bin/")


@pytest.mark.skipif(not CI.exists(), reason="not in a checkout")
@pytest.mark.parametrize("name", ["demo", "tests"])
def test_ci_runs_the_commands_as_they_stand(name: str) -> None:
    done = subprocess.run(["bash", str(CI), "--print", name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == command(name)
    runs = [line for line in CI.read_text().splitlines() if line.strip().startswith("run_readme ")]
    assert [name in line.split() for line in runs].count(True) == 1


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[0][:40])
def test_python_examples_run(code: str, tmp_path: Path) -> None:
    script = f"import os; os.chdir({str(tmp_path)!r})\n{code}"
    done = samples.run_python(script, DEEPLAB_CRF_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr


def test_there_are_examples() -> None:
    assert len(blocks("python")) >= 2


def test_commands_of_the_command_line_section_exist() -> None:
    """Every option that README shows is one that the help knows."""
    shown = re.findall(r"^deeplab-crf (\w+)(.*)$", "\n".join(blocks("sh")), flags=re.MULTILINE)
    assert {name for name, _ in shown} >= {"refine", "info", "bench", "demo"}
    for name, rest in shown:
        done = samples.run_python(
            "from deeplab_crf.cli import main; raise SystemExit(main())", name, "--help", COLUMNS="200"
        )
        assert done.returncode == 0, done.stderr
        known = set(re.findall(r"(?<!\S)-{1,2}[\w-]+", done.stdout))
        assert set(re.findall(r"(?<!\S)-{1,2}[a-z][\w-]*", rest.partition("#")[0])) <= known


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text()):
        assert (ROOT / target).exists(), target
    assert os.access(ROOT / "tools" / "sanitize", os.X_OK)
