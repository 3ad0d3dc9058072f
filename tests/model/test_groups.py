from __future__ import annotations

import pytest
import torch

from automl_tl.model.groups import count_parameters, describe_groups, example_input
from automl_tl.plugin import Tokens
from automl_tl_builtins.backbones import minilm_l6


@pytest.mark.parametrize("name", ["source_cnn", "source_mlp"])
def test_shares_of_the_work_add_up_and_parameters_are_counted(subjects, name):
    subject = subjects[name]
    torch.manual_seed(1)
    expected_next = torch.rand(2)
    torch.manual_seed(1)
    groups = describe_groups(subject.backbone, subject.interface.input_shape)
    assert torch.equal(torch.rand(2), expected_next)
    whole = subject.backbone.build(input_shape=subject.interface.input_shape, weights=None)
    assert tuple(group.name for group in groups) == subject.backbone.layer_groups
    assert sum(group.parameters for group in groups) == count_parameters(whole)
    assert sum(group.flop_share for group in groups) == pytest.approx(1)
    assert all(0 < group.flop_share < 1 for group in groups)


def test_the_work_of_a_layer_is_its_multiplications(mlp):
    first, second, third = describe_groups(mlp.backbone, mlp.interface.input_shape)
    assert second.flop_share == pytest.approx(third.flop_share)
    assert first.flop_share / second.flop_share == pytest.approx(13 / 256)


def test_a_blank_text_is_tokens():
    (backbone,) = minilm_l6.automl_tl_backbones()
    batch = example_input(backbone, (), n=2)
    assert isinstance(batch, Tokens)
    assert batch.values.shape == batch.mask.shape == (2, 32)
    assert batch.mask.all()


def test_only_trainable_parameters_are_counted_on_demand(mlp):
    network = mlp.backbone.build(input_shape=(13,), weights=None)
    network.layer1.requires_grad_(False)
    assert count_parameters(network) - count_parameters(network, trainable=True) == 13 * 256 + 3 * 256
