"""CRF settings of the published DeepLab models and of the tools people come from, by name: plain data, no torch.

The released models normalise after the filter and feed the raw scores as they are; re-implementations on pydensecrf
normalise symmetrically (and clip probabilities at 1e-5 before the logarithm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from deeplab_crf.kernels import Bilateral, Gaussian, Kernel, check_normalization


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
        Preset("crfasrnn", (smooth, Bilateral(sxy=160, srgb=3, weight=5)), description="CRF as RNN"),
        Preset(
            "pydensecrf",
            (smooth, Bilateral(sxy=80, srgb=13, weight=10)),
            iterations=5,
            normalization="symmetric",
            description="pydensecrf's own example; also the defaults of deeplab_crf.dense_crf",
        ),
    )


PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _papers()})


def get_preset(name: str) -> Preset:
    """Return the preset called ``name``. Raises ValueError that lists the names there are."""
    try:
        return PRESETS[name]
    except (KeyError, TypeError):
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}") from None


def choose_model(
    preset: str | None, kernels: Sequence[Kernel] | None, iterations: int | None, normalization: str | None
) -> Preset:
    """The preset of that name (None: "pydensecrf") with what is given beside it in place of its own."""
    base = get_preset("pydensecrf" if preset is None else preset)
    return replace(
        base,
        kernels=base.kernels if kernels is None else tuple(kernels),
        iterations=base.iterations if iterations is None else iterations,
        normalization=base.normalization if normalization is None else normalization,
    )
