"""Refusals: devices without numbers, too little memory, and options without a CRF. One line each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from model_samples import small_model
from samples import run_python
from tune_samples import write_tuning

from deeplab_crf.cli import main
from deeplab_crf.models import save_weights
from deeplab_crf.runtime.devices import torch_device

# As torch 2.13 words it: on CUDA, on the CPU, in cuBLAS; and NumPy, and our native code.
ERRORS = (
    torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.80 GiB of which " * 3
    ),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 400 bytes. "
        "Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError("Unable to allocate 14.9 GiB for an array with shape (2000000000,) and data type float64"),
    MemoryError(),
)

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture
def words(tmp_path: Path) -> dict[str, list[str]]:
    """Arguments of every command that computes, ready to run."""
    root = write_tuning(tmp_path / "data", count=2)
    weights, out = tmp_path / "net.safetensors", str(tmp_path / "out")
    save_weights(small_model(), weights)
    image, labels = (str(root / kind / "train" / "train0.png") for kind in ("images", "labels"))
    data, net = ["--data", f"folder:{root}:train"], ["--weights", str(weights)]
    settings = ["--model", "v2-compact-aspp", "--data", "folder", "--root", str(root)]
    return {
        "segment": ["segment", image, *net, "-o", out],
        "evaluate": ["evaluate", *data, *net, "-o", out],
        "train": ["train", *settings, "-o", out],
        "refine": ["refine", image, labels, "-o", f"{out}.png"],
        "tune": ["tune", *data, "--scores", str(root / "scores"), "-o", out],
        "convert": ["convert", str(weights), f"{out}.safetensors"],
        "demo": ["demo", "-o", out],
        "bench": ["bench"],
        "bench conv": ["bench", "conv"],
    }


@pytest.mark.parametrize("name", ["meta", "meta:0", "tpu", "", "cuda:-1", "cuda:77"])
@pytest.mark.parametrize("command", ["segment", "evaluate", "train", "refine"])
def test_devices_that_cannot_be_computed_on(
    command: str, name: str, words: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A meta tensor passed the look that a device was given before."""
    assert main([*words[command], "--device", name]) in (1, 2)
    spoken = capsys.readouterr().err
    assert spoken.startswith("Error: ")
    assert spoken.count("\n") == 1
    assert "device" in spoken
    assert not (tmp_path / "out").exists()


def test_a_device_that_cannot_be_used_says_what_can() -> None:
    with pytest.raises(
        ValueError, match=r"device 'meta' cannot be used: .*Use cpu, or one that deeplab-crf info shows"
    ):
        torch_device("meta")
    assert torch_device("cpu") == torch.device("cpu")


CALLED = {
    "segment": ("deeplab_crf.models.load_model", "--longer-side"),
    "evaluate": ("deeplab_crf.cli.evaluate._run", "--workers 1"),
    "train": ("deeplab_crf.training.train.train", "--accumulate"),
    "refine": ("deeplab_crf.cli.refine.refine_file", "smaller image"),
    "tune": ("deeplab_crf.cli.tune._search", "fewer --images"),
    "convert": ("deeplab_crf.models.load_model", "more memory"),
    "demo": ("deeplab_crf.cli.demo.make_pipeline", "more memory"),
    "bench": ("deeplab_crf.cli.bench.run_case", "--size"),
    "bench conv": ("deeplab_crf.benchmark.conv.run_case", "--size"),
}


@pytest.mark.parametrize(
    ("command", "error"), [*((command, ERRORS[0]) for command in CALLED), *(("bench", error) for error in ERRORS[1:])]
)
def test_too_little_memory_says_what_to_do(
    command: str,
    error: Exception,
    words: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Errors of torch were tracebacks before."""

    def fails(*_: Any, **__: Any) -> NoReturn:
        raise error

    target, hint = CALLED[command]
    monkeypatch.setattr(target, fails)
    assert main(words[command]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "out of memory (" in line]
    assert line.startswith("Error: out of memory (")
    assert hint in line
    assert len(line) < 400


def test_one_image_among_many(
    words: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> NoReturn:
        raise ERRORS[0]

    monkeypatch.setattr("deeplab_crf.cli.segment.segment_file", fails)
    assert main(words["segment"]) == 1
    spoken = capsys.readouterr().err
    assert "train0.png: out of memory (CUDA out of memory. Tried to allocate 20.00 GiB." in spoken
    assert "(--longer-side)" in spoken


def test_other_errors_of_the_run_time_stay_what_they_are(
    words: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError("a bug")

    monkeypatch.setattr("deeplab_crf.cli.bench.run_case", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        main(words["bench"])


@pytest.mark.skipif(os.name == "nt", reason="needs a limit on memory")
def test_memory_that_really_does_not_suffice(tmp_path: Path) -> None:
    script = (
        "import resource, sys, torch\nfrom deeplab_crf.cli import main\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))\n"
        "sys.exit(main(['bench', 'conv', '--size', '2049', '--model', 'v1-largefov', '--repeats', '1']))"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    done = run_python(script)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("Error: out of memory (")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("options", [["--preset", "crfasrnn"], ["--min-probability", "1e-5"]])
@pytest.mark.parametrize("command", ["segment", "evaluate"])
def test_settings_of_a_crf_that_is_not_run(
    command: str, options: list[str], words: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They were ignored without a word before."""
    assert main([*words[command], "--no-crf", *options]) == 2
    assert f"Error: {options[0]} is of no use with --no-crf; leave one of them out (see" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
