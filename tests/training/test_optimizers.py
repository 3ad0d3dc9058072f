from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from automl_tl.model.spec import Optimization
from automl_tl.plugin import GroupPlan
from automl_tl.training.optimizers import ANNEALED, Schedule, build_optimizer

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


def rates(schedule, steps):
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": 1.0, "peak": 2.0}])
    found = []
    for step in range(steps):
        schedule.set(optimizer, step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_rate_rises_in_a_line_and_stays():
    found = rates(Schedule(30), 200)
    assert found[:30] == pytest.approx([2.0 * (step + 1) / 30 for step in range(30)])
    assert set(found[29:]) == {2.0}


def test_an_annealed_rate_falls_in_a_line_to_zero_over_the_last_steps():
    found, fall = rates(Schedule(30, end=200), 200), round(200 * (1 - ANNEALED))
    assert found[: fall + 1] == rates(Schedule(30), fall + 1)
    assert found[fall:] == pytest.approx([2.0 * (200 - step) / (200 - fall) for step in range(fall, 200)])
    assert found[-1] > 0


@given(warm_up=st.integers(0, 60), end=st.integers(1, 200), more=st.integers(0, 200))
@settings(deadline=None, max_examples=50)
def test_until_it_falls_a_rate_is_the_same_however_long_training_goes_on(warm_up, end, more):
    annealed, longer, constant = Schedule(warm_up, end), Schedule(warm_up, end + more), Schedule(warm_up)
    falls = next(steps for steps in range(1, end + 2) if steps > end or annealed.has_fallen(steps)) - 1
    ours, theirs, plain = (rates(schedule, falls) for schedule in (annealed, longer, constant))
    assert ours == theirs == plain
    assert not any(constant.has_fallen(steps) for steps in range(1, end))
    assert all(rate > 0 for rate in rates(annealed, end))
    assert max(rates(annealed, end)) <= 2.0


@pytest.mark.parametrize("end", [1, 2, 3])
def test_the_shortest_training_has_a_rate_too(end):
    assert rates(Schedule(0, end), end)[0] == 2.0
    assert all(rate > 0 for rate in rates(Schedule(30, end), end))
