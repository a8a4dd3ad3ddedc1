"""The drop-in reaches worker processes, and scripts without a line of code: with and without a pydensecrf on the path.

A script, a module that its workers import, and a package pydensecrf that refuses to be imported lie in folders of their own, as
with users. Each case runs in an interpreter of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from deeplab_crf.pydensecrf._install import STUB_FOLDER

WORKER = """
import pydensecrf.densecrf as dcrf
from pydensecrf.utils import unary_from_labels

def reached(number):
    crf = dcrf.DenseCRF2D(3, 2, 2)
    crf.setUnaryEnergy(unary_from_labels(__import__("numpy").array([0, 1, 0, 1, 0, 1]), 2, 0.7, zero_unsure=False))
    assert crf.inference(number).shape == (2, 6)
    return dcrf.DenseCRF2D.__module__
"""

MAIN = """
import subprocess
import sys

INSTALL

import worker

def nested(number):
    import pydensecrf.densecrf as dcrf
    return worker.reached(number) if dcrf.DenseCRF(1, 1) else None

def answers(way):
    if way.startswith("loky"):
        from joblib import Parallel, delayed

        def local(number):
            import pydensecrf.densecrf
            return pydensecrf.densecrf.DenseCRF2D.__module__

        return Parallel(n_jobs=2)(delayed(local if way == "loky, nested" else worker.reached)(n) for n in range(2))
    if way == "subprocess":
        command = [sys.executable, "-c", "import pydensecrf.densecrf as d; print(d.DenseCRF2D.__module__)"]
        return [subprocess.run(command, check=True, capture_output=True, text=True, cwd=FOLDER).stdout.strip()] * 2
    import multiprocessing
    with multiprocessing.get_context(way).Pool(2) as pool:
        return pool.map(nested, range(2), chunksize=1)

if __name__ == "__main__":
    found = answers(sys.argv[1])
    assert found == ["deeplab_crf.pydensecrf.densecrf"] * 2, found
    print("reached")
"""

INSTALL = "import deeplab_crf\ndeeplab_crf.install_as_pydensecrf()\n"
WAYS = ["loky", "loky, nested", "spawn", "forkserver", "fork", "subprocess"]


@pytest.fixture(params=["absent", "installed", "beside the script"])
def scripts(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with worker.py, and a pydensecrf that must not be imported on the path."""
    folder = tmp_path / "scripts"
    (folder / "empty").mkdir(parents=True)
    (folder / "worker.py").write_text(WORKER)
    if request.param != "absent":
        real = (folder if request.param == "beside the script" else tmp_path / "installed") / "pydensecrf"
        real.mkdir(parents=True)
        (real / "__init__.py").write_text('raise RuntimeError("the real pydensecrf was imported")\n')
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder.parent / "installed")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder / "empty",
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def write_main(folder: Path, install: str) -> str:
    path = folder / "main.py"
    path.write_text(MAIN.replace("INSTALL", install).replace("FOLDER", repr(str(folder / "empty"))))
    return str(path)


@pytest.mark.parametrize("way", WAYS)
def test_workers(scripts: Path, way: str) -> None:
    if way.startswith("loky") and find_spec("joblib") is None:
        pytest.skip("joblib is not installed")
    done = run(scripts, "-W", "error", write_main(scripts, INSTALL), way)
    assert (done.returncode, done.stdout) == (0, "reached\n"), done.stderr


@pytest.mark.parametrize("way", ["loky", "spawn", "subprocess"])
def test_workers_without_a_line_of_code(scripts: Path, way: str) -> None:
    if way == "loky" and find_spec("joblib") is None:
        pytest.skip("joblib is not installed")
    done = run(scripts, "-m", "deeplab_crf.pydensecrf", write_main(scripts, ""), way)
    assert (done.returncode, done.stdout) == (0, "reached\n"), done.stderr


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path


RUN = ("-m", "deeplab_crf.pydensecrf")


def test_the_path_is_extended_once(plain: Path) -> None:
    script = """
import os, sys
import deeplab_crf
before = list(sys.path)
for _ in range(3):
    deeplab_crf.install_as_pydensecrf()
assert [sys.path[0], *sys.path[2:]] == before
first, *others = os.environ["PYTHONPATH"].split(os.pathsep)
assert first == sys.path[1] and others == [sys.argv[1]], others
import pydensecrf.densecrf
"""
    done = run(plain, "-c", script, str(plain.parent / "installed"))
    assert done.returncode == 0, done.stderr


def test_the_stub_is_known_by_another_path(plain: Path) -> None:
    (plain / "link").symlink_to(STUB_FOLDER)
    script = "import sys; sys.path.insert(0, sys.argv[1]); import pydensecrf, pydensecrf.utils as u; print(u.__name__)"
    done = run(plain, "-c", script, str(plain / "link"))
    assert (done.returncode, done.stdout) == (0, "deeplab_crf.pydensecrf.utils\n"), done.stderr


def test_a_script_sees_what_python_shows_it(plain: Path) -> None:
    script = plain / "script.py"
    script.write_text(
        "import inspect, sys\n"
        "import pydensecrf.densecrf\n"
        "import beside\n"
        "print(sys.argv, __name__, __file__, __spec__, beside.number, sys.modules['__main__'].__dict__ is globals())\n"
        "assert sys.path[0] == __file__.rpartition('/')[0]\n"
        "def function():\n    return 1\n"
        "print(inspect.getsource(function))\n"
        "import atexit, pickle\n"
        "atexit.register(lambda: print(pickle.loads(pickle.dumps(function))()))\n"
        "sys.exit(7)\n"
    )
    (plain / "beside.py").write_text("number = 3\n")
    found = run(plain, *RUN, "../script.py", "a", "-b")
    expected = f"['../script.py', 'a', '-b'] __main__ {script} None 3 True\ndef function():\n    return 1\n\n1\n"
    assert (found.returncode, found.stdout, found.stderr) == (7, expected, "")


def test_tracebacks_begin_at_the_script(plain: Path) -> None:
    script = plain / "script.py"
    script.write_text("import pydensecrf.densecrf\n\n\ndef fail():\n    raise KeyError(3)\n\n\nfail()\n")
    done = run(plain, *RUN, str(script))
    assert done.returncode == 1
    files = [line.split('"')[1] for line in done.stderr.splitlines() if line.startswith("  File ")]
    assert files == [str(script)] * 2
    assert done.stderr.endswith("KeyError: 3\n")
    script.write_text("def broken(:\n")
    done = run(plain, *RUN, str(script))
    assert done.returncode == 1
    assert "deeplab_crf" not in done.stderr.replace(str(plain), "")
    assert "SyntaxError" in done.stderr


def test_modules_commands_and_folders(plain: Path) -> None:
    package = plain / "empty" / "tool"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(
        "import sys, pydensecrf.utils as u\nprint(u.__name__, sys.argv[1:], __package__)\n"
    )
    done = run(plain, *RUN, "-m", "tool", "x")
    assert (done.returncode, done.stdout) == (0, "deeplab_crf.pydensecrf.utils ['x'] tool\n"), done.stderr
    done = run(plain, *RUN, "-c", "import sys, pydensecrf; print(pydensecrf.__name__, sys.argv)", "x")
    assert (done.returncode, done.stdout) == (0, "deeplab_crf.pydensecrf ['-c', 'x']\n"), done.stderr
    done = run(plain, *RUN, "tool", "x")
    assert (done.returncode, done.stdout) == (0, "deeplab_crf.pydensecrf.utils ['x'] \n"), done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ((), 2, "a script, -m and a module, or -c and a command must be given"),
        (("-m",), 2, "a script, -m and a module"),
        (("-x", "script.py"), 2, "unknown option -x; options of Python itself go before"),
        (("absent.py",), 2, "can't open file 'absent.py'"),
        (("--help",), 0, "usage: python -m deeplab_crf.pydensecrf"),
    ],
)
def test_usage(plain: Path, arguments: tuple[str, ...], status: int, message: str) -> None:
    done = run(plain, *RUN, *arguments)
    assert done.returncode == status
    assert message in (done.stderr if status else done.stdout)
    assert "Traceback" not in done.stderr


def test_an_environment_without_this_package_is_told(plain: Path) -> None:
    script = """
import sys
import deeplab_crf
deeplab_crf.install_as_pydensecrf()
for name in [name for name in sys.modules if name.partition(".")[0] in ("deeplab_crf", "pydensecrf")]:
    del sys.modules[name]
sys.modules["deeplab_crf"] = None
try:
    import pydensecrf
except ImportError as error:
    print(error)
"""
    done = run(plain, "-c", script)
    assert done.returncode == 0, done.stderr
    assert "Install deeplab-crf in this environment, or take the folder out of PYTHONPATH" in done.stdout
