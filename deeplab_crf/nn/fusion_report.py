"""What `fuse` has done to a network."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class FusionReport:
    """Names are those of the network's modules.

    folded: BatchNorms that are part of a convolution now, name of the convolution -> name of the BatchNorm. replaced: convolution
    -> what was merged into it ("bias", "residual", "relu"). sums: sums of parallel convolutions that are one module now. left:
    convolution -> why it is torch's still. untraced: modules whose forward torch.fx cannot follow -> its error, or what it would
    leave out; their children were looked at one by one.
    """

    folded: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, list[str]] = field(default_factory=dict)
    sums: list[list[str]] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    untraced: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        merged = [what for parts in self.replaced.values() for what in parts]
        residuals, relus = merged.count("residual"), merged.count("relu")
        lines = [
            f"{len(self.folded)} BatchNorms folded; {len(self.replaced)} convolutions replaced, with {residuals} residuals and "
            f"{relus} ReLUs; {len(self.sums)} sums of {sum(map(len, self.sums))} convolutions made one"
        ]
        lines += [f"left: {name}: {reason}" for name, reason in self.left.items()]
        lines += [f"not traced: {name or 'the network'}: {error}" for name, error in self.untraced.items()]
        return "\n".join(lines)
