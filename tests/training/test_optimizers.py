from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from automl_tl.model.spec import Optimization
from automl_tl.plugin import GroupPlan
from automl_tl.training.optimizers import WARM_UP, build_optimizer, set_learning_rate

PLANS = (
    GroupPlan(group="conv2", action="tune", lr_scale=0.5),
    GroupPlan(group="conv3", action="reinit", unfreeze_epoch=1, lr_scale=0.25),
    GroupPlan(group="conv4", action="tune", lr_scale=0.5, part="norm"),
)


@pytest.fixture
def spec(digits):
    return digits.spec(*PLANS, learning_rate=0.01, weight_decay=0.1)


@pytest.fixture
def model(digits, spec):
    return digits.model(spec)


def names_of(model, optimizer):
    """What each parameter's group says, by the parameter's name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}


def test_every_trained_parameter_is_there_once_and_no_frozen_one(model, spec):
    optimizer = build_optimizer(model, spec)
    parameters = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(parameters) == len(set(parameters))
    names = set(names_of(model, optimizer))
    assert {name for name in names if name.startswith("groups.conv4")} == {
        "groups.conv4.1.weight",
        "groups.conv4.1.bias",
    }
    assert not any(name.startswith("groups.conv1") for name in names)
    assert {"groups.conv2.0.weight", "groups.conv3.0.weight", "head.weight", "head.bias"} <= names


def test_rates_follow_the_groups_and_the_head_has_its_own(model, spec):
    spec = replace(spec, optimization=Optimization(learning_rate=0.01, head_lr_scale=3.0))
    groups = names_of(model, build_optimizer(model, spec))
    scales = {"groups.conv2": 0.5, "groups.conv3": 0.25, "groups.conv4": 0.5, "head": 3.0}
    for name, group in groups.items():
        scale = next(value for start, value in scales.items() if name.startswith(start))
        assert group["lr"] == group["peak"] == pytest.approx(0.01 * scale)


@pytest.mark.parametrize("optimizer", ["sgd", "sgd_momentum", "adam", "adamw"])
def test_vectors_do_not_decay(model, spec, optimizer):
    spec = replace(spec, optimization=Optimization(optimizer=optimizer))
    for name, group in names_of(model, build_optimizer(model, spec)).items():
        expected = 0.1 if model.get_parameter(name).ndim > 1 else 0.0
        assert group["weight_decay"] == expected


def test_further_parameters_train_like_the_head(model, spec):
    spec = replace(spec, optimization=Optimization(learning_rate=0.01, head_lr_scale=3.0))
    extra = nn.Linear(4, 2)
    optimizer = build_optimizer(model, spec, extra=extra.parameters())
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert found[id(extra.weight)] is found[id(model.head.weight)]
    assert found[id(extra.bias)] is found[id(model.head.bias)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sgd", torch.optim.SGD),
        ("sgd_momentum", torch.optim.SGD),
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
    ],
)
def test_each_name_is_its_optimizer(model, spec, name, kind):
    optimizer = build_optimizer(model, replace(spec, optimization=Optimization(optimizer=name)))
    assert type(optimizer) is kind
    assert optimizer.defaults.get("momentum", 0) == (0.9 if name == "sgd_momentum" else 0)


def rates(total):
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": 1.0, "peak": 2.0}])
    found = []
    for step in range(total):
        set_learning_rate(optimizer, step, total)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine():
    found, warm_up = rates(200), round(WARM_UP * 200)
    assert found[:warm_up] == pytest.approx([2.0 * (step + 1) / warm_up for step in range(warm_up)])
    assert found[warm_up] == pytest.approx(2.0)
    assert max(found) == pytest.approx(2.0)
    assert found[warm_up:] == sorted(found[warm_up:], reverse=True)
    middle = (warm_up + 200) // 2
    assert found[middle] == pytest.approx(1.0)
    assert found[-1] == pytest.approx(1 + math.cos(math.pi * (199 - warm_up) / (200 - warm_up)))
    assert 0 < found[-1] < 0.001


@pytest.mark.parametrize("total", [1, 2, 3])
def test_the_shortest_training_has_a_rate_too(total):
    assert rates(total)[0] == 2.0
    assert all(rate > 0 for rate in rates(total))
