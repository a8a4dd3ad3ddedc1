"""The report of `fuse`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class FusionReport:
    """What `fuse` did to a network, by the names of its modules; "" is the network itself.

    Attributes:
        folded: Folded BatchNorms: name of the convolution -> name of the BatchNorm.
        replaced: Replaced convolutions -> the parts merged into them ("bias", "residual", "relu").
        sums: Sums of parallel convolutions that became one module.
        left: Convolutions that remain torch's -> the reason.
        untraced: Modules whose forward torch.fx cannot follow -> its error, or the part that it
            would leave out. Their children were followed one by one.
        layout: Modules whose code depends on the memory layout of tensors, as Tensor.view does. With
            any of them, weights do not become channels_last unless that works on the example.
        difference: The largest difference from the network's output on the example, over the
            largest value; None without an example.
    """

    folded: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, list[str]] = field(default_factory=dict)
    sums: list[list[str]] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    untraced: dict[str, str] = field(default_factory=dict)
    layout: list[str] = field(default_factory=list)
    difference: float | None = None

    def add(self, other: FusionReport) -> None:
        """Add the report of a part of the network."""
        self.folded |= other.folded
        self.replaced |= other.replaced
        self.left |= other.left
        self.sums += other.sums

    def __str__(self) -> str:
        merged = [part for parts in self.replaced.values() for part in parts]
        residuals, relus = merged.count("residual"), merged.count("relu")
        lines = [
            f"{len(self.folded)} BatchNorms folded; {len(self.replaced)} convolutions replaced, with {residuals} residuals and "
            f"{relus} ReLUs; {len(self.sums)} sums of {sum(map(len, self.sums))} convolutions made one"
        ]
        lines += [f"left: {name}: {reason}" for name, reason in self.left.items()]
        lines += [f"not traced: {name or 'the network'}: {error}" for name, error in self.untraced.items()]
        if self.layout:
            names = ", ".join(name or "the network" for name in self.layout)
            lines.append(f"depends on how tensors lie in memory: {names}")
        if self.difference is not None:
            lines.append(f"largest difference on the example: {self.difference:.1e} of the largest value")
        return "\n".join(lines)
