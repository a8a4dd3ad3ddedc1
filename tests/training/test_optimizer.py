"""Learning rates of the papers: over time, and for each kind of parameter."""

from __future__ import annotations

import pytest
import torch
from model_samples import small_model

from deeplab_crf.training.optimizer import make_optimizer, parameter_groups, set_learning_rate
from deeplab_crf.training.schedule import learning_rate
from deeplab_crf.training.settings import TrainSettings


def settings(**changes: object) -> TrainSettings:
    return TrainSettings(model="v2-vgg16-aspp-l", data="voc", root="", **changes)


def test_poly_is_v2_s() -> None:
    """Section 4.1.1: lr (1 - t / T) ** 0.9; ResNet-101 starts at 2.5e-4."""
    v2 = settings(learning_rate=2.5e-4)
    assert learning_rate(v2, 0) == 2.5e-4
    assert learning_rate(v2, 10000) == pytest.approx(2.5e-4 * 0.5**0.9)
    assert learning_rate(v2, 19999) == pytest.approx(2.5e-4 * (1 / 20000) ** 0.9)


def test_step_is_v1_s() -> None:
    """Section 3.2 of V1: a tenth after every 2000 of 6000 iterations, from 1e-3."""
    v1 = settings(policy="step", iterations=6000)
    rates = [learning_rate(v1, iteration) for iteration in (0, 1999, 2000, 3999, 4000, 5999)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5], rel=1e-9)


def test_warm_up_rises_in_equal_steps() -> None:
    for policy in ("poly", "step"):
        plain, warm = settings(policy=policy), settings(policy=policy, warmup=4)
        shares = [learning_rate(warm, t) / learning_rate(plain, t) for t in (0, 1, 2, 3, 4, 19999)]
        assert shares == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def rates(name: str, *head_rate: float) -> dict[str, tuple[float, float]]:
    """Multiple and weight decay of every parameter that is trained."""
    model = small_model(name)
    names = {id(parameter): parameter_name for parameter_name, parameter in model.named_parameters()}
    found = {}
    for group in parameter_groups(model, 5e-4, *head_rate):
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = (group["multiple"], group["weight_decay"])
    return found


def test_vgg() -> None:
    found = rates("v2-vgg16-aspp-l")
    assert len(found) == 2 * (13 + 4 * 3)
    assert found["backbone.features.0.weight"] == (1, 5e-4)
    assert found["backbone.features.0.bias"] == (2, 0)
    assert found["classifier.branches.3.fc6.weight"] == (1, 5e-4)
    assert found["classifier.branches.3.fc8.weight"] == (10, 5e-4)
    assert found["classifier.branches.3.fc8.bias"] == (20, 0)


def test_the_head_can_learn_faster() -> None:
    plain, faster = rates("v2-vgg16-aspp-l"), rates("v2-vgg16-aspp-l", 5.0)
    assert plain.keys() == faster.keys()
    for name, (multiple, decay) in plain.items():
        assert faster[name] == (multiple * (1 if name.startswith("backbone.") else 5), decay)


def test_resnet_trains_no_batch_norm() -> None:
    found = rates("v2-resnet50-aspp")
    assert not [name for name in found if "bn" in name or "downsample.1" in name]
    assert found["backbone.layer1.0.conv1.weight"] == (1, 5e-4)
    assert found["classifier.branches.0.weight"] == (10, 5e-4)
    assert found["classifier.branches.0.bias"] == (20, 0)


def test_compact_trains_batch_norm_without_decay() -> None:
    found = rates("v2-compact-aspp")
    assert found["backbone.bn1.weight"] == found["backbone.bn1.bias"] == (1, 0)
    assert len(found) == len(list(small_model("v2-compact-aspp").parameters()))


def test_msc_trains_its_branches_alone() -> None:
    found = rates("v1-vgg16-msc-largefov")
    assert {name.split(".")[0] for name in found} == {"msc"}
    assert found["msc.pool2.ms.weight"] == (1, 5e-4)
    assert found["msc.pool2.conv.bias"] == (2, 0)


def test_frozen_stages_are_left_out() -> None:
    found = rates("v2-narrow-aspp-l")
    assert not [name for name in found if name.startswith(("backbone.features.0.", "backbone.features.2."))]
    assert found["backbone.features.5.weight"] == (1, 5e-4)
    assert len(found) == 2 * (11 + 4 * 3)


def test_a_step_of_adamw_is_of_the_size_of_the_rate() -> None:
    """The first step is lr times the gradient's sign, and weight decay is lr times decay times the weight."""
    model = small_model("v2-vgg16-largefov")
    optimizer = make_optimizer(model, settings(optimizer="adamw", weight_decay=0.1, momentum=0.8))
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.999)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, -3)
    set_learning_rate(optimizer, 1e-2)
    optimizer.step()
    for name, multiple, decay in [("backbone.features.0.weight", 1, 0.1), ("classifier.branches.0.fc8.bias", 20, 0)]:
        want = before[name] * (1 - 1e-2 * multiple * decay) + 1e-2 * multiple
        torch.testing.assert_close(model.get_parameter(name), want)


def test_a_step_is_what_the_rates_say() -> None:
    model = small_model("v2-vgg16-largefov")
    optimizer = make_optimizer(model, settings())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_learning_rate(optimizer, 1e-2)
    optimizer.step()
    for name, multiple, decay in [
        ("backbone.features.0.weight", 1, 5e-4),
        ("backbone.features.0.bias", 2, 0),
        ("classifier.branches.0.fc8.weight", 10, 5e-4),
        ("classifier.branches.0.fc8.bias", 20, 0),
    ]:
        want = before[name] - 1e-2 * multiple * (1 + decay * before[name])
        torch.testing.assert_close(model.get_parameter(name), want)
