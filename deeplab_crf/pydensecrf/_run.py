"""Runs a script, a module or a command as Python itself would, with the drop-in in the place of pydensecrf."""

from __future__ import annotations

import builtins
import io
import os
import runpy
import sys
import zipfile
from importlib.machinery import SourceFileLoader
from types import CodeType, ModuleType, TracebackType
from typing import Any, NoReturn

from deeplab_crf.pydensecrf import install_as_pydensecrf

_USAGE = "usage: python -m deeplab_crf.pydensecrf (SCRIPT | -m MODULE | -c COMMAND) [ARGUMENT ...]"
_HELP = f"""{_USAGE}

Runs a Python script, module or command that uses pydensecrf, unchanged, on deeplab-crf's drop-in for it. The processes
that it starts use the drop-in, too."""


def main() -> None:
    """Run what ``sys.argv`` names. The exit status, tracebacks and ``sys.argv`` are those of the script."""
    arguments = sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        print(_HELP)
        return
    if not arguments or (arguments[0] in ("-m", "-c") and len(arguments) == 1):
        _refuse("a script, -m and a module, or -c and a command must be given")
    if arguments[0].startswith("-") and arguments[0] not in ("-m", "-c"):
        _refuse(f"unknown option {arguments[0]}; options of Python itself go before -m deeplab_crf.pydensecrf")
    _hide_own_frames()
    if arguments[0] == "-m":
        install_as_pydensecrf()
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        install_as_pydensecrf()
        sys.argv = ["-c", *arguments[2:]]
        _run_as_main(compile(arguments[1], "<string>", "exec", dont_inherit=True))
    else:
        _run_script(arguments)


def _refuse(reason: str) -> NoReturn:
    print(f"{_USAGE}\n{reason}", file=sys.stderr)
    raise SystemExit(2)


def _run_script(arguments: list[str]) -> None:
    """Run the file, or the folder or archive with a ``__main__.py``, that the first argument names."""
    path = arguments[0]
    sys.argv = arguments
    if not os.path.exists(path):
        _refuse(f"can't open file {path!r}: No such file or directory")
    if os.path.isdir(path) or zipfile.is_zipfile(path):
        sys.path.pop(0)  # the working folder, which Python does not search then
        install_as_pydensecrf()
        runpy.run_path(path, run_name="__main__")
        return
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    install_as_pydensecrf()
    absolute = os.path.abspath(path)
    with io.open_code(absolute) as stream:
        source = stream.read()
    _run_as_main(compile(source, absolute, "exec", dont_inherit=True), absolute)


def _run_as_main(code: CodeType, path: str | None = None) -> None:
    """Run ``code`` as the module ``__main__``, which stays in place for exit handlers, threads and worker processes."""
    module = ModuleType("__main__")
    names: dict[str, Any] = {"__builtins__": builtins}
    if path is not None:
        names |= {"__file__": path, "__cached__": None, "__loader__": SourceFileLoader("__main__", path)}
    vars(module).update(names)
    sys.modules["__main__"] = module
    exec(code, vars(module))


def _hide_own_frames() -> None:
    """Make tracebacks begin at the script, as without this module. A hook that the script sets replaces this one."""
    report = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        own = {__file__, os.path.join(os.path.dirname(__file__), "__main__.py"), runpy.__file__, "<frozen runpy>"}
        while trace is not None and trace.tb_frame.f_code.co_filename in own:
            trace = trace.tb_next
        error.__traceback__ = trace
        report(kind, error, trace)

    sys.excepthook = hook
