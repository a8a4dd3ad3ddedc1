"""Every layer of the authors' networks is accounted for, under the names of their own prototxts."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from released_layers import TABLES, copied, original_of, released_layers

from deeplab_crf.models import build_model
from deeplab_crf.models.weights.files import RawWeights
from deeplab_crf.models.weights.names import caffe_name, translate
from deeplab_crf.training.optimizer import parameter_groups


def whole_file(table: str) -> RawWeights:
    """The file's tensors at their real sizes; each is one number that is repeated, so that they need no memory."""
    return RawWeights(
        "caffe",
        {
            f"{layer.name}/{i}": torch.ones(()).expand(shape)
            for layer in released_layers(table)
            for i, shape in enumerate(layer.shapes)
        },
    )


@pytest.mark.parametrize("table", TABLES)
def test_every_released_layer_has_its_place(table: str) -> None:
    with torch.device("meta"):
        model = build_model(TABLES[table])
    wanted = {
        name: tuple(value.shape)
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    result = translate(whole_file(table))
    assert {name: tuple(value.shape) for name, value in result.tensors.items()} == wanted
    copies = {layer.name for layer in released_layers(table) if original_of(layer.name) != layer.name}
    assert set(result.set_aside) == copies
    assert not result.unknown
    assert len(copies) == (632 if "resnet" in table else 0)


def test_copies_carry_the_scale_in_the_middle_of_a_classifiers_name() -> None:
    names = [layer.name for layer in released_layers("released_v2_resnet101_aspp")]
    originals = [name for name in names if original_of(name) == name]
    assert "fc1_voc12_res05_c3" in names
    assert set(names) == {*originals, *(copied(name, scale) for name, scale in product(originals, ("res05", "res075")))}


@pytest.mark.parametrize(
    "name", ["fc1_voc12_res05_c2", "fc1_voc12_res075_c0", "bn_conv1_res05", "res5c_branch2c_res075"]
)
def test_a_copy_with_other_numbers_is_named(name: str) -> None:
    raw = whole_file("released_v2_resnet101_aspp")
    changed = {**raw.tensors, f"{name}/0": torch.zeros(()).expand(raw.tensors[f"{name}/0"].shape)}
    result = translate(RawWeights("caffe", changed))
    assert result.unknown == [f"{name} (other weights than {original_of(name)})"]


@pytest.mark.parametrize("table", TABLES)
def test_learning_rates_are_those_of_the_prototxt(table: str) -> None:
    """A factor of 0 is a parameter that is not trained; weight decay is left out for biases alone."""
    with torch.device("meta"):
        model = build_model(TABLES[table])
    multiples = {
        id(parameter): (group["multiple"], group["weight_decay"])
        for group in parameter_groups(model, weight_decay=5e-4)
        for parameter in group["params"]
    }
    parameters = dict(model.named_parameters())
    for layer in released_layers(table):
        if original_of(layer.name) != layer.name or layer.kind == "BatchNorm":
            continue
        place = caffe_name(layer.name)
        assert place is not None
        for part, rate in zip(("weight", "bias"), layer.rates, strict=False):
            found = multiples.get(id(parameters[f"{place[0]}.{part}"]), (0.0, None))
            assert found == ((rate, 5e-4 if part == "weight" else 0.0) if rate else (0.0, None)), layer.name
