"""Learning rates of the papers: over time, and for each kind of parameter."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from model_samples import small_model  # noqa: E402

from deeplab_crf.engine.optimizer import make_optimizer, parameter_groups, set_learning_rate  # noqa: E402
from deeplab_crf.engine.schedule import learning_rate  # noqa: E402
from deeplab_crf.engine.settings import TrainSettings  # noqa: E402


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


def rates(name: str) -> dict[str, tuple[float, float]]:
    """Multiple and weight decay of every parameter that is trained."""
    model = small_model(name)
    names = {id(parameter): parameter_name for parameter_name, parameter in model.named_parameters()}
    found = {}
    for group in parameter_groups(model, 5e-4):
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
    assert found["msc.pool2.ms.weight"] == (10, 5e-4)
    assert found["msc.pool2.conv.bias"] == (2, 0)


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
