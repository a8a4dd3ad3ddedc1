"""Checkpoints as people have them: wrappers, prefixes, harmless objects beside tensors, other projects' heads, and no weights."""

from __future__ import annotations

import argparse
import gzip
import io
import pathlib
import tarfile
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_samples import CLASSES, narrow, numbers, small_model

from deeplab_crf.models import DeepLab, load_model, load_weights
from deeplab_crf.models.weights import checkpoint

RESNET = "v2-resnet101-aspp"
BLOCKS = (1, 2, 3, 1)  # of the layers that the lists of names have, few
NAMES = Path(__file__).with_name("names")


def trained(seed: int = 1) -> DeepLab:
    """The narrow network with numbers of its own."""
    torch.manual_seed(seed)
    model = DeepLab(narrow(RESNET, blocks=BLOCKS), CLASSES).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and "conv" not in name:
                value.uniform_(0.5, 1.5)
    return model


def under_names(model: DeepLab, source: str, old: str = "", new: str = "") -> dict[str, Any]:
    """The network's numbers under the names of the list ``source``, their prefix ``old`` replaced by ``new``."""
    theirs = dict(reversed(line.split()) for line in (NAMES / f"{source}.txt").read_text().splitlines())
    state = {}
    for name, value in model.state_dict().items():
        module, part = name.rsplit(".", 1)
        state[f"{new}{theirs[module].removeprefix(old)}.{part}"] = value
    return state


def loads(path: Path, model: DeepLab, **options: Any) -> Any:
    """Loads ``path`` into another network, which then has the numbers of ``model``; returns the report."""
    other = DeepLab(narrow(RESNET, blocks=BLOCKS), CLASSES)
    report = load_weights(other, path, **options)
    want = numbers(model)
    for name, value in numbers(other).items():
        torch.testing.assert_close(value, want[name], rtol=0, atol=0, msg=name)
    return report


# ---------------------------------------------------------------- wrappers and prefixes


@pytest.mark.parametrize(
    ("wrap", "taken"),
    [
        (lambda s, o: {"state_dict": s, "epoch": 3}, "state_dict"),
        (lambda s, o: {"model_state": s, "best_acc": torch.tensor(0.7)}, "model_state"),
        (lambda s, o: {"model_state_dict": s, "optimizer": {"state": {0: {"m": torch.ones(2)}}}}, "model_state_dict"),
        (lambda s, o: {"net": s}, "net"),
        (lambda s, o: {"deeplab": s, "epoch": 3}, "deeplab"),
        (lambda s, o: {"checkpoint": {"state_dict": s}, "epoch": 3}, "state_dict"),
        (lambda s, o: {"model": o, "model_ema": s}, r"model_ema \(also there: model\)"),
        (lambda s, o: {"state_dict": o, "state_dict_ema": s}, r"state_dict_ema \(also there: state_dict\)"),
        (lambda s, o: {"network": o, "average": s}, r"average \(also there: network\)"),
    ],
)
def test_wrappers_and_which_of_several_was_taken(wrap: Any, taken: str, tmp_path: Path) -> None:
    model = trained()
    path = tmp_path / "net.pth"
    torch.save(wrap(under_names(model, "isht7"), under_names(trained(2), "isht7")), path)
    report = loads(path, model)
    assert taken.replace("\\", "") in report.taken
    assert f"taken: {report.taken}" in str(report)


@pytest.mark.parametrize(
    "prefixes", ["module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "model.module.", "ema_model.module."]
)
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_prefixes_of_training_tools(prefixes: str, kind: str, tmp_path: Path) -> None:
    """DataParallel, torch.compile, a LightningModule's attribute, AveragedModel (which counts), and what else a module has."""
    model = trained()
    state = under_names(model, "isht7", new=prefixes) | {
        "criterion.weight": torch.ones(CLASSES),
        "n_averaged": torch.ones(1),
    }
    path = tmp_path / f"net.{kind}"
    if kind == "pth":
        torch.save({"state_dict": state, "pytorch-lightning_version": "2.4.0", "hyper_parameters": {"lr": 0.1}}, path)
    else:
        pytest.importorskip("safetensors.torch", reason="writes a file of it").save_file(
            {name: value.contiguous() for name, value in state.items()}, path
        )
    report = loads(path, model)
    assert f"names under {prefixes.split('.', maxsplit=1)[0]}" in report.taken
    assert report.set_aside["criterion.weight"] == "beside the network"


def test_a_running_mean_under_a_prefix_is_taken_before_its_weights(tmp_path: Path) -> None:
    model = trained()
    path = tmp_path / "net.ckpt"
    state = under_names(trained(2), "isht7", new="model.") | under_names(model, "isht7", new="ema_model.")
    torch.save({"state_dict": state}, path)
    assert "names under ema_model (also there: model)" in loads(path, model).taken


def test_a_prefix_that_leads_nowhere_is_left_alone(tmp_path: Path) -> None:
    """A module called ``ema`` beside the network is not its running mean."""
    model = trained()
    path = tmp_path / "net.ckpt"
    torch.save({"state_dict": under_names(model, "isht7", new="model.") | {"ema.decay": torch.ones(1)}}, path)
    report = loads(path, model)
    assert "names under model (also there: ema)" in report.taken
    assert report.set_aside["ema.decay"] == "beside the network"


def test_several_unknown_state_dicts_are_named(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save({"generator": under_names(trained(), "isht7"), "critic": {"a.weight": torch.ones(2)}}, path)
    with pytest.raises(ValueError, match="it holds several state dicts, generator, critic; save the one that is meant"):
        load_weights(small_model(RESNET), path)


def test_wrappers_have_an_end(tmp_path: Path) -> None:
    stored: Any = {"a.weight": torch.ones(2)}
    for _ in range(40):
        stored = {"state_dict": stored}
    torch.save(stored, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="state_dict are not named tensors"):
        load_weights(small_model(RESNET), tmp_path / "net.pth")


# ---------------------------------------------------------------- objects beside tensors


@pytest.mark.parametrize("new_format", [True, False])
def test_harmless_objects_beside_tensors(new_format: bool, tmp_path: Path) -> None:
    model = trained()
    path = tmp_path / "net.pth"
    beside = {
        "args": argparse.Namespace(lr=0.1, size=(321, 321)),
        "options": types.SimpleNamespace(a=1),
        "best_miou": np.float64(0.75),
        "flag": np.bool_(True),
        "step": np.int64(5),
        "curve": np.arange(3.0),
        "folder": pathlib.PurePosixPath("runs/1"),
    }
    torch.save({"state_dict": under_names(model, "isht7"), **beside}, path, _use_new_zipfile_serialization=new_format)
    loads(path, model)
    left = [each for each in torch.serialization.get_safe_globals() if isinstance(each, type)]
    assert not any(issubclass(each, checkpoint._Ignored) for each in left)
    state = under_names(model, "isht7") | {"best_miou": np.float32(0.5)}
    torch.save(state, path, _use_new_zipfile_serialization=new_format)
    loads(path, model)


def test_other_protocols_of_pickle(tmp_path: Path) -> None:
    """torch reads protocol 2 without running code, and of the others what it has the instructions for."""
    path, model = tmp_path / "net.pth", trained()
    torch.save({"state_dict": under_names(model, "isht7")}, path, pickle_protocol=3)
    loads(path, model)
    torch.save({"state_dict": under_names(model, "isht7")}, path, pickle_protocol=5)
    try:
        loads(path, model)
    except ValueError as error:
        assert "saved with another pickle_protocol than 2" in str(error)  # noqa: PT017 (a later torch may read it)


def test_numpy_1_scalars_are_harmless_too(tmp_path: Path) -> None:
    """NumPy 1 writes its scalars as numpy.core.multiarray.scalar, NumPy 2 as numpy._core.multiarray.scalar."""
    path, model = tmp_path / "net.pth", trained()
    torch.save(
        {"state_dict": under_names(model, "isht7"), "best": np.float64(0.5)}, path, _use_new_zipfile_serialization=False
    )
    content = path.read_bytes()
    new, old = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    path.write_bytes(content.replace(new, old) if new in content else content.replace(old, new))
    loads(path, model)


class Settings:
    """Stands for a project's own class."""


def test_what_is_refused_is_named_with_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save({"state_dict": under_names(trained(), "isht7"), "cfg": Settings()}, path)
    with pytest.raises(ValueError, match=r"could run code \(\S*test_wrapped_weights\.Settings\)") as caught:
        load_weights(small_model(RESNET), path)
    assert "weights_only=False" in str(caught.value)
    assert "torch.save(stored['state_dict'], NEW)" in str(caught.value)


# ---------------------------------------------------------------- other projects' heads


def test_speedinghzls_names(tmp_path: Path) -> None:
    """isht7's without ``Scale.`` (speedinghzl/Pytorch-Deeplab deeplab/model.py); one scale, unlike isht7's."""
    model = trained()
    path = tmp_path / "VOC12_scenes_20000.pth"
    torch.save(under_names(model, "isht7", old="Scale."), path)
    report = loads(path, model)
    assert report.format == "speedinghzl"
    assert "bgr-255" in report.input
    assert not report.unknown


def adaptsegnet(model: DeepLab) -> dict[str, Any]:
    """Two branches trained, two as drawn, as in AdaptSegNet's classifier (its issue 20)."""
    with torch.no_grad():
        for branch in list(model.classifier.branches)[:2]:
            branch.weight.uniform_(-0.02, 0.03)
        for branch in list(model.classifier.branches)[2:]:
            branch.weight.normal_(0, 0.01)
            branch.bias.uniform_(-0.02, 0.02)
    return under_names(model, "isht7", old="Scale.")


@pytest.mark.parametrize("multi", [False, True])
def test_branches_that_their_project_never_runs(multi: bool, tmp_path: Path) -> None:
    """AdaptSegNet's forward returns after the second branch; its multi-level network has an auxiliary ``layer5`` on layer3, and
    ``layer6`` (model/deeplab_multi.py)."""
    model = trained()
    state = adaptsegnet(model)
    if multi:
        state = {name.replace("layer5.", "layer6."): value for name, value in state.items()}
        state |= {f"layer5.conv2d_list.{i}.weight": torch.ones(CLASSES, 64, 3, 3) for i in range(4)}
    path = tmp_path / "GTA2Cityscapes.pth"
    torch.save(state, path)
    with torch.no_grad():
        for branch in list(model.classifier.branches)[2:]:
            branch.weight.zero_()
            branch.bias.zero_()
    report = loads(path, model)
    assert report.format == ("AdaptSegNet" if multi else "speedinghzl")
    silent = [name for name, why in report.set_aside.items() if "never runs" in why]
    layer = "layer6" if multi else "layer5"
    assert set(silent) == {f"{layer}.conv2d_list.{i}.{part}" for i in (2, 3) for part in ("weight", "bias")}


def test_a_new_network_keeps_all_of_its_branches(tmp_path: Path) -> None:
    """All of them are as drawn."""
    model = DeepLab(narrow(RESNET, blocks=BLOCKS), CLASSES)
    path = tmp_path / "new.pth"
    torch.save(under_names(model, "isht7", old="Scale."), path)
    loads(path, model)


def test_kazutos_initial_weights(tmp_path: Path) -> None:
    """deeplabv1_resnet101-coco.pth (convert.py, libs/models/deeplabv1.py): no prefix, ``fc`` of 1 x 1 to 91 classes."""
    model = trained()
    state = {name: value for name, value in under_names(model, "kazuto1011", old="base.").items() if "aspp" not in name}
    path = tmp_path / "deeplabv1_resnet101-coco.pth"
    torch.save(state | {"fc.weight": torch.ones(91, 128, 1, 1), "fc.bias": torch.ones(91)}, path)
    other = DeepLab(narrow(RESNET, blocks=BLOCKS), CLASSES)
    report = load_weights(other, path)
    assert report.format == "kazuto1011"
    assert {"fc.weight", "fc.bias"} < set(report.set_aside)
    assert {name.split(".")[0] for name in report.missing} == {"classifier"}
    torch.testing.assert_close(other.backbone.state_dict(), model.backbone.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"has no classifier \(kazuto1011 names\)"):
        load_model(path)


# ---------------------------------------------------------------- what is no weights file


def tar_of(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def zip_of(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"12")
    return stream.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title>", "it is a web page"),
        (b"\n\n  <HTML lang=en>\n<body>404</body>", "it is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "it is an XML text"),
        (LFS, "Git LFS pointer, not the file itself: run `git lfs pull`"),
        (b'{\n  "metadata": {"total_size": 1},\n  "weight_map": {}\n}', "it is a JSON text"),
        (b"{}", "it is a JSON text"),
        (gzip.compress(b"weights"), "compressed with gzip: unpack it first"),
        (tar_of("net.pth", b"12"), "it is a tar archive: unpack it first"),
        (zip_of("net.caffemodel"), r"zip archive without a torch checkpoint \(it holds net.caffemodel\)"),
        (zip_of("conv1.npy", "fc6.npy"), "NumPy archive"),
        (zip_of("metadata.json", "config.json", "model.weights.h5"), r"a \.keras archive: .* model\.weights\.h5"),
        (b'name: "VGG"\nlayer {\n  name: "data"\n  type: "Input"\n}\n', "it is a prototxt"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}", r"one NumPy array \(\.npy\)"),
    ],
)
def test_other_files_are_called_what_they_are(content: bytes, message: str, tmp_path: Path) -> None:
    for name in ("net.pth", "net.caffemodel", "net.safetensors"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            load_model(path)
        assert str(path) in str(caught.value)


def test_a_torchscript_module_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(zip_of("net/data.pkl", "net/code/__torch__.py", "net/constants.pkl"))
    with pytest.raises(ValueError, match=r"it is a TorchScript module.*state_dict"):
        load_model(path)
