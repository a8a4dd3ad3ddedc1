"""Changes by another thread to the tensors of a convolution between its checks and its kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conv_samples import Sizes, error, expected, tensors
from torch import Tensor

from deeplab_crf import aspp_sum, conv_algorithm, dilated_conv2d
from deeplab_crf.ops.conv import cpu
from deeplab_crf.ops.conv import packed_weights as conv_weights

SIZES = Sizes(2, 20, 19, 9, 10)
ALGORITHMS = ["direct", "winograd", "shifted"]


def _run(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, algorithm: str) -> Tensor:
    with conv_algorithm(algorithm):
        if algorithm == "shifted":
            return aspp_sum(x, [weight], [bias], [1])
        return dilated_conv2d(x, weight, bias, padding=1, residual=residual)


def _arguments() -> list[Tensor]:
    return [*tensors(SIZES), torch.randn(2, 19, 9, 10)]


@pytest.mark.parametrize("changed", range(4))
@pytest.mark.parametrize("algorithm", ["direct", "winograd"])
def test_sizes_that_change_after_the_check(monkeypatch: pytest.MonkeyPatch, algorithm: str, changed: int) -> None:
    arguments = _arguments()
    choose = cpu.find_algorithm

    def choose_and_change(*given: Any) -> str:
        arguments[changed].data = torch.zeros(1)
        return choose(*given)

    monkeypatch.setattr(cpu, "find_algorithm", choose_and_change)
    with pytest.raises(RuntimeError):
        _run(*arguments, algorithm)


@pytest.mark.parametrize("change", [lambda w: setattr(w, "data", torch.zeros(1)), lambda w: w.resize_(1, 1, 1, 1)])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_weight_that_changes_before_it_is_packed(
    monkeypatch: pytest.MonkeyPatch, algorithm: str, change: Callable[[Tensor], Any]
) -> None:
    arguments = _arguments()
    x, weight, bias, residual = (argument.clone() for argument in arguments)
    fingerprint = conv_weights._fingerprint

    def fingerprint_and_change(read: Tensor) -> Any:
        change(arguments[1])
        return fingerprint(read)

    monkeypatch.setattr(conv_weights, "_fingerprint", fingerprint_and_change)
    want = expected(x, weight, bias, None if algorithm == "shifted" else residual, padding=1)
    assert error(_run(*arguments, algorithm), want) < 1e-4


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_weights_that_change_while_they_are_packed_are_not_cached(
    monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    arguments = _arguments()
    weight = arguments[1].clone()
    fingerprint, calls = conv_weights._fingerprint, []

    def fingerprint_then_change(read: Tensor) -> Any:
        mark = fingerprint(read)
        if not calls:
            arguments[1].mul_(2)
        calls.append(mark)
        return mark

    with monkeypatch.context() as patched:
        patched.setattr(conv_weights, "_fingerprint", fingerprint_then_change)
        _run(*arguments, algorithm)
    arguments[1].copy_(weight)
    residual = None if algorithm == "shifted" else arguments[3]
    want = expected(arguments[0], weight, arguments[2], residual, padding=1)
    assert error(_run(*arguments, algorithm), want) < 1e-4


@pytest.mark.parametrize(("freed", "name"), [(0, "input"), (1, "weight"), (2, "bias"), (3, "residual")])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_memory_that_was_freed(algorithm: str, freed: int, name: str) -> None:
    if algorithm == "shifted" and name == "residual":
        pytest.skip("aspp_sum has no residual")
    arguments = _arguments()
    arguments[freed].untyped_storage().resize_(16)
    with pytest.raises(RuntimeError, match=f"expected {name} to have memory for its size, .* storage has 16 bytes"):
        _run(*arguments, algorithm)
