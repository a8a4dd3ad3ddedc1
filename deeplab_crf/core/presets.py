"""CRF settings of the published DeepLab models, of the bundled one and of the tools people come from, by name, and files of
one's own: plain data, no torch.

The released models normalise after the filter and feed the raw scores as they are; re-implementations on pydensecrf
normalise symmetrically (and clip probabilities at 1e-5 before the logarithm).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from deeplab_crf.core.pairwise import Bilateral, Gaussian, Kernel, Width, check_normalization
from deeplab_crf.runtime.checks import items_of, shown, whole_number
from deeplab_crf.runtime.files import atomic_write

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_KERNEL_TYPES: Mapping[str, type[Gaussian | Bilateral]] = {"gaussian": Gaussian, "bilateral": Bilateral}


@dataclass(frozen=True)
class Preset:
    """What one published model runs as its CRF.

    name: how it is called here. kernels: the pairwise kernels. iterations: mean field updates. normalization: how every
    kernel is normalised ("none", "before", "after" or "symmetric"). description: where the numbers come from.
    """

    name: str
    kernels: tuple[Kernel, ...]
    iterations: int = 10
    normalization: str = "after"
    description: str = ""

    def __post_init__(self) -> None:
        check_normalization(self.normalization)


def _papers() -> tuple[Preset, ...]:
    smooth = Gaussian(sxy=3, weight=3)
    return (
        Preset(
            "deeplab-v1-largefov",
            (smooth, Bilateral(sxy=50, srgb=10, weight=5)),
            description="DeepLab V1 LargeFOV, the released model",
        ),
        Preset(
            "deeplab-v1-largefov-pydensecrf",
            (smooth, Bilateral(sxy=121, srgb=5, weight=4)),
            normalization="symmetric",
            description="DeepLab V1 LargeFOV as re-implementations run it on pydensecrf",
        ),
        Preset("deeplab-v1-msc", (smooth, Bilateral(sxy=95, srgb=3, weight=3)), description="DeepLab V1 MSc"),
        Preset(
            "deeplab-v1-msc-largefov",
            (smooth, Bilateral(sxy=83, srgb=5, weight=4)),
            description="DeepLab V1 MSc-LargeFOV",
        ),
        Preset(
            "deeplab-v2-vgg16",
            (Gaussian(sxy=2, weight=2), Bilateral(sxy=65, srgb=3, weight=4)),
            description="DeepLab V2 VGG-16 ASPP",
        ),
        Preset(
            "deeplab-v2-resnet101",
            (Gaussian(sxy=1, weight=3), Bilateral(sxy=67, srgb=3, weight=4)),
            description="DeepLab V2 ResNet-101",
        ),
        Preset(
            "deeplab-v2-resnet101-pydensecrf",
            (Gaussian(sxy=1, weight=3), Bilateral(sxy=67, srgb=3, weight=4)),
            normalization="symmetric",
            description="DeepLab V2 ResNet-101 as kazuto1011/deeplab-pytorch runs it on pydensecrf",
        ),
        Preset("crfasrnn", (smooth, Bilateral(sxy=160, srgb=3, weight=5)), description="CRF as RNN"),
        Preset(
            "pydensecrf",
            (smooth, Bilateral(sxy=80, srgb=13, weight=10)),
            iterations=5,
            normalization="symmetric",
            description="pydensecrf's own example; also the defaults of deeplab_crf.dense_crf",
        ),
    )


STREET = Preset(
    "street",
    (Gaussian(sxy=0.5, weight=3), Bilateral(sxy=80, srgb=3, weight=3)),
    description="the bundled network of street scenes, found by deeplab-crf tune on CamVid train, see docs/camvid.md",
)
PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in (*_papers(), STREET)})


def get_preset(name: str | os.PathLike[str]) -> Preset:
    """The published preset called ``name``, or the one in a file, see `load_preset`. A file is what ends in .toml or names a folder
    (``./mine``), or a ``Path``.

    Raises ValueError that lists the names there are, or says what is wrong with the file.
    """
    if isinstance(name, str) and name in PRESETS:
        return PRESETS[name]
    if isinstance(name, os.PathLike) or (isinstance(name, str) and (name.endswith(".toml") or os.path.dirname(name))):
        return load_preset(name)
    raise ValueError(f"preset must be one of {', '.join(PRESETS)}, or a file that ends in .toml; got {shown(name)}")


def choose_model(
    preset: str | os.PathLike[str] | None,
    kernels: Sequence[Kernel] | None,
    iterations: int | None,
    normalization: str | None,
) -> Preset:
    """The preset of that name or file (None: "pydensecrf") with what is given beside it in place of its own."""
    base = get_preset("pydensecrf" if preset is None else preset)
    return replace(
        base,
        kernels=base.kernels
        if kernels is None
        else items_of(kernels, "kernels", "Gaussian, Bilateral or PairwiseKernel"),
        iterations=base.iterations if iterations is None else iterations,
        normalization=base.normalization if normalization is None else normalization,
    )


def save_preset(preset: Preset, path: str | os.PathLike[str]) -> None:
    """Write a preset as a TOML file for `load_preset`, every number as it is; the file appears whole or not at all.

    Raises ValueError for what such a file cannot hold: kernels over features of one's own, and compatibilities between labels.
    """
    lines = [
        "# Settings of a dense CRF, for deeplab-crf refine, segment and evaluate --preset FILE, and DenseCRF.from_preset(FILE).",
        f"name = {_quoted(preset.name)}",
        f"description = {_quoted(preset.description)}",
        f"iterations = {preset.iterations}",
        f"normalization = {_quoted(preset.normalization)}",
    ]
    for number, kernel in enumerate(preset.kernels):
        if not isinstance(kernel, Gaussian | Bilateral) or kernel.compat is not None:
            raise ValueError(
                f"kernels[{number}] of a preset to be saved must be a Gaussian or Bilateral without compat; got {kernel!r}"
            )
        lines += ["", "[[kernels]]"]
        lines.append('type = "gaussian"' if isinstance(kernel, Gaussian) else 'type = "bilateral"')
        lines.append(f"sxy = {_number_or_list(kernel.sxy)}")
        if isinstance(kernel, Bilateral):
            lines.append(f"srgb = {_number_or_list(kernel.srgb)}")
        lines.append(f"weight = {float(kernel.weight)!r}")
        if kernel.normalization is not None:
            lines.append(f"normalization = {_quoted(kernel.normalization)}")
    with atomic_write(Path(path)) as stream:
        stream.write(("\n".join(lines) + "\n").encode())


def _quoted(text: str) -> str:
    """As TOML's basic string, which is JSON's with DEL escaped too; lone surrogates (of file names) become question marks."""
    return json.dumps(text.encode("utf-8", "replace").decode(), ensure_ascii=False).replace("\x7f", "\\u007f")


def _number_or_list(value: Width) -> str:
    return repr([float(each) for each in value] if isinstance(value, Sequence) else float(value))


def load_preset(path: str | os.PathLike[str]) -> Preset:
    """Read a preset from a TOML file: name, iterations, normalization, description (may be absent), and a table ``[[kernels]]`` for
    each kernel with type ("gaussian" or "bilateral"), sxy, weight, srgb (bilateral alone), normalization (may be absent).

    Raises ValueError that names the file, the key, what was expected and what came.
    """
    file = Path(path)
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"preset {file}: cannot be read ({error.strerror or error})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"preset {file}: is not a TOML file ({error})") from error
    where = f"preset {file}"
    _check_keys(table, ("name", "iterations", "normalization", "kernels"), ("description",), where)
    kernels = table["kernels"]
    if not isinstance(kernels, list) or not kernels or not all(isinstance(each, dict) for each in kernels):
        raise ValueError(f"{where}: kernels must be one or more tables [[kernels]]; got {kernels!r}")
    iterations = whole_number(table["iterations"], f"{where}: iterations", 0)
    return Preset(
        name=_text(table, "name", where),
        kernels=tuple(_read_kernel(each, f"{where}: kernels[{number}]") for number, each in enumerate(kernels)),
        iterations=iterations,
        normalization=check_normalization(_text(table, "normalization", where), f"{where}: normalization"),
        description=_text({"description": "", **table}, "description", where),
    )


def _read_kernel(table: dict[str, Any], where: str) -> Kernel:
    kind = table.get("type")
    if not isinstance(kind, str) or kind not in _KERNEL_TYPES:
        raise ValueError(f"{where}: type must be one of {', '.join(_KERNEL_TYPES)}; got {kind!r}")
    widths = ("sxy", "srgb") if kind == "bilateral" else ("sxy",)
    _check_keys(table, ("type", *widths, "weight"), ("normalization",), where)
    for key in (*widths, "weight"):
        value = table[key]
        values = value if isinstance(value, list) and key != "weight" else [value]
        if not values or any(isinstance(each, bool) or not isinstance(each, int | float) for each in values):
            wanted = "a number" if key == "weight" else "a number or a list of numbers"
            raise ValueError(f"{where}: {key} must be {wanted}; got {value!r}")
    try:
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in table.items()
        }
        return _KERNEL_TYPES[given.pop("type")](**given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error


def _check_keys(table: Mapping[str, Any], needed: Sequence[str], allowed: Sequence[str], where: str) -> None:
    for key in needed:
        if key not in table:
            raise ValueError(f"{where}: {key} must be given; got {', '.join(table) or 'nothing'}")
    for key in table:
        if key not in (*needed, *allowed):
            raise ValueError(f"{where}: keys must be among {', '.join((*needed, *allowed))}; got {key}")


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table[key]
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key} must be a text in quotes; got {value!r}")
    return value
