from __future__ import annotations

from importlib import import_module

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import FixedTrial

from automl_tl.plugin import LayerGroup, PlanContext

SIZES = (1, 3, 9)
SPACES = {  # a function of the number of groups S, and of nothing else
    "linear_probe": lambda size: {},
    "full_finetune": lambda size: {},
    "last_k": lambda size: {"k": IntDistribution(1, size)},
    "suffix": lambda size: {
        "tap": IntDistribution(1, size),
        "n_train": IntDistribution(0, size),
        "n_reinit": IntDistribution(0, min(2, size)),
    },
    "transfer_k": lambda size: {
        "k": IntDistribution(1, size),
        "tune_transferred": CategoricalDistribution((False, True)),
    },
    "gradual_unfreezing": lambda size: {"epochs_per_group": IntDistribution(1, 3)},
    "discriminative": lambda size: {"decay": CategoricalDistribution((0.95, 0.9, 0.75, 0.65, 0.385))},
    "lp_ft": lambda size: {"head_epochs": IntDistribution(1, 5)},
}


def strategy_of(name):
    (strategy,) = import_module(f"automl_tl_builtins.strategies.{name}").automl_tl_freezing_strategies()
    return strategy


def groups_of(size):
    return [LayerGroup(name=f"g{i}", parameters=10, flop_share=1 / size) for i in range(1, size + 1)]


def plan_of(name, size, params, *, max_epochs=20):
    context = PlanContext(backbone="b", modality="image", n_train=100, n_classes=3, max_epochs=max_epochs)
    return strategy_of(name).plan(FixedTrial(params), groups_of(size), context)


def actions(plan):
    return " ".join(group.action for group in plan)


def starts(plan):
    return [group.unfreeze_epoch for group in plan]


@st.composite
def cases(draw):
    name = draw(st.sampled_from(sorted(SPACES)))
    size = draw(st.integers(1, 12))
    params = {}
    for key, space in SPACES[name](size).items():
        if isinstance(space, IntDistribution):
            params[key] = draw(st.integers(space.low, space.high))
        else:
            params[key] = draw(st.sampled_from(space.choices))
    return name, size, params, draw(st.integers(1, 40))


@pytest.mark.parametrize("name", SPACES)
def test_strategy_is_registered_under_the_name_of_its_module(name):
    assert strategy_of(name).name == name
    assert strategy_of(name).description


@given(cases())
@settings(deadline=None, max_examples=200)
def test_every_plan_keeps_the_rules(case):
    name, size, params, max_epochs = case
    plan = plan_of(name, size, params, max_epochs=max_epochs)
    assert [group.group for group in plan] == [group.name for group in groups_of(size)]
    order = ("freeze", "tune", "reinit", "drop")
    depths = [order.index(group.action) for group in plan]
    assert depths == sorted(depths)
    assert plan.groups[0].action != "drop"
    assert all(group.lr_scale > 0 and group.part == "all" for group in plan)
    assert all(0 <= group.unfreeze_epoch < max_epochs for group in plan)
    assert plan == plan_of(name, size, params, max_epochs=max_epochs)


@given(cases())
@settings(deadline=None, max_examples=200)
def test_the_search_space_is_static(case):
    name, size, params, max_epochs = case
    trial = FixedTrial(params)
    context = PlanContext(backbone="b", modality="text", n_train=7, n_classes=2, max_epochs=max_epochs)
    strategy_of(name).plan(trial, groups_of(size), context)
    assert trial.distributions == SPACES[name](size)


@pytest.mark.parametrize("size", SIZES)
def test_linear_probe_freezes_all(size):
    assert actions(plan_of("linear_probe", size, {})) == " ".join(["freeze"] * size)


@pytest.mark.parametrize("size", SIZES)
def test_full_finetune_tunes_all_from_the_start(size):
    plan = plan_of("full_finetune", size, {})
    assert actions(plan) == " ".join(["tune"] * size)
    assert starts(plan) == [0] * size


@pytest.mark.parametrize(
    ("size", "k", "expected"),
    [(1, 1, "tune"), (3, 1, "freeze freeze tune"), (3, 2, "freeze tune tune"), (3, 3, "tune tune tune")],
)
def test_last_k_tunes_the_last_k(size, k, expected):
    assert actions(plan_of("last_k", size, {"k": k})) == expected


@pytest.mark.parametrize(
    ("tap", "n_train", "n_reinit", "expected"),
    [
        (3, 0, 0, "freeze freeze freeze"),
        (3, 3, 0, "tune tune tune"),
        (3, 2, 1, "freeze tune reinit"),
        (2, 1, 0, "freeze tune drop"),
        (2, 3, 2, "reinit reinit drop"),
        (1, 3, 1, "reinit drop drop"),
        (1, 0, 2, "freeze drop drop"),
    ],
)
def test_suffix_orders_the_four_actions_and_clips(tap, n_train, n_reinit, expected):
    assert actions(plan_of("suffix", 3, {"tap": tap, "n_train": n_train, "n_reinit": n_reinit})) == expected


def test_suffix_of_nine_groups_at_the_middle():
    plan = plan_of("suffix", 9, {"tap": 6, "n_train": 3, "n_reinit": 1})
    assert actions(plan) == "freeze freeze freeze tune tune reinit drop drop drop"


def test_suffix_reaches_every_ordered_plan_of_three_groups():
    found = {
        actions(plan_of("suffix", 3, {"tap": tap, "n_train": n_train, "n_reinit": n_reinit}))
        for tap in range(1, 4)
        for n_train in range(4)
        for n_reinit in range(3)
    }
    assert len(found) == sum(1 + n_train for tap in range(1, 4) for n_train in range(tap + 1)) - 1  # 3 x reinit is out


@pytest.mark.parametrize(
    ("size", "k", "tune", "expected"),
    [
        (1, 1, False, "freeze"),
        (1, 1, True, "tune"),
        (3, 1, False, "freeze reinit reinit"),
        (3, 2, True, "tune tune reinit"),
        (3, 3, False, "freeze freeze freeze"),
    ],
)
def test_transfer_k_reinitializes_the_rest(size, k, tune, expected):
    assert actions(plan_of("transfer_k", size, {"k": k, "tune_transferred": tune})) == expected


@pytest.mark.parametrize(
    ("size", "step", "max_epochs", "expected"),
    [
        (1, 2, 20, [2]),
        (3, 2, 20, [6, 4, 2]),
        (9, 2, 40, [18, 16, 14, 12, 10, 8, 6, 4, 2]),
        (9, 3, 20, [18, 16, 14, 12, 10, 8, 6, 4, 2]),  # steps of 3 would not fit
        (3, 3, 5, [3, 2, 1]),
        (9, 1, 5, [3, 2, 2, 2, 1, 1, 1, 0, 0]),  # fewer epochs than groups
        (3, 1, 2, [0, 0, 0]),
        (3, 1, 1, [0, 0, 0]),
    ],
)
def test_gradual_unfreezing_starts_at_the_end_and_fits_the_epochs(size, step, max_epochs, expected):
    plan = plan_of("gradual_unfreezing", size, {"epochs_per_group": step}, max_epochs=max_epochs)
    assert actions(plan) == " ".join(["tune"] * size)
    assert starts(plan) == expected


@given(st.integers(1, 12), st.integers(1, 3), st.integers(3, 60))
@settings(deadline=None, max_examples=100)
def test_gradual_unfreezing_starts_every_group_before_the_last_epoch(size, step, max_epochs):
    epochs = starts(plan_of("gradual_unfreezing", size, {"epochs_per_group": step}, max_epochs=max_epochs))
    assert epochs == sorted(epochs, reverse=True)
    assert max(epochs) < max_epochs - 1


def test_discriminative_decays_from_the_output():
    plan = plan_of("discriminative", 3, {"decay": 0.65})
    assert actions(plan) == "tune tune tune"
    assert [group.lr_scale for group in plan] == pytest.approx([0.65**2, 0.65, 1.0])
    assert [group.lr_scale for group in plan_of("discriminative", 1, {"decay": 0.385})] == [1.0]


@pytest.mark.parametrize(("head_epochs", "max_epochs", "expected"), [(3, 20, 3), (5, 5, 4), (5, 1, 0), (1, 2, 1)])
def test_lp_ft_tunes_all_after_the_head(head_epochs, max_epochs, expected):
    plan = plan_of("lp_ft", 9, {"head_epochs": head_epochs}, max_epochs=max_epochs)
    assert actions(plan) == " ".join(["tune"] * 9)
    assert starts(plan) == [expected] * 9
