from __future__ import annotations

import json
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl_tl.errors import ConfigError, RunError
from automl_tl.model.spec import (
    Augmentation,
    ClassWeight,
    InitHead,
    Optimization,
    OptimizerName,
    Regularization,
    TrialSpec,
    check_spec,
    spec_from_json,
)
from automl_tl.plugin import GroupPlan, TransferPlan

FRACTIONS = st.floats(0, 1)
SETTINGS = {
    "regularization": st.builds(
        Regularization,
        dropout=FRACTIONS,
        weight_decay=FRACTIONS,
        label_smoothing=FRACTIONS,
        l2_sp=FRACTIONS,
        class_weight=st.sampled_from(get_args(ClassWeight)),
        augmentation=st.sampled_from(get_args(Augmentation)),
        patience=st.integers(0, 20),
        min_delta=FRACTIONS,
    ),
    "optimization": st.builds(
        Optimization,
        optimizer=st.sampled_from(get_args(OptimizerName)),
        learning_rate=st.floats(1e-9, 1e6),
        head_lr_scale=st.floats(0.1, 10),
        batch_size=st.integers(1, 512),
        warm_up=st.integers(0, 500),
        clip_norm=st.floats(0, 100),
        averaging=FRACTIONS,
    ),
    "strategy": st.none() | st.text(max_size=8),
    "head_parameters": st.dictionaries(
        st.text(max_size=8),
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    ),
    "weights": st.sampled_from(("transferred", "random")),
    "init_head": st.sampled_from(get_args(InitHead)),
    "norm": st.sampled_from(("eval", "train")),
    "joint_source_weight": FRACTIONS,
    "max_epochs": st.integers(3, 100),
}
PLAN = TransferPlan((GroupPlan(group="a", action="freeze"), GroupPlan(group="b", action="tune", lr_scale=0.3)))
SPEC = TrialSpec(backbone="net", plan=PLAN)


@given(data=st.data(), values=st.fixed_dictionaries({}, optional=SETTINGS))
@settings(deadline=None, max_examples=50)
def test_a_spec_comes_back_from_json_with_the_same_digest(plans, data, values):
    spec = TrialSpec(backbone="net", plan=data.draw(plans(("a", "b", "c"))), **values)
    read = spec_from_json(json.loads(json.dumps(spec.to_json())))
    assert read == spec
    assert read.digest() == spec.digest()
    kinds = [type(value) for value in spec.head_parameters.values()]
    assert [type(value) for value in read.head_parameters.values()] == kinds


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "other"},
        {"plan": TransferPlan(PLAN.groups[:1])},
        {"plan": TransferPlan((PLAN.groups[0], replace(PLAN.groups[1], part="bias")))},
        {"head": "mlp"},
        {"head_parameters": {"hidden": 128}},
        {"weights": "random"},
        {"norm": "train"},
        {"regularization": Regularization(dropout=0.1)},
        {"optimization": Optimization(batch_size=16)},
        {"optimization": Optimization(warm_up=31)},
        {"optimization": Optimization(clip_norm=0.5)},
        {"optimization": Optimization(averaging=0.99)},
        {"init_head": "probe"},
        {"joint_source_weight": 0.1},
        {"tokens": 128},
        {"max_epochs": 21},
    ],
)
def test_every_change_changes_the_digest(change):
    assert replace(SPEC, **change).digest() != SPEC.digest()


def test_the_digest_is_short_and_stable():
    assert SPEC.digest() == TrialSpec(backbone="net", plan=TransferPlan(tuple(PLAN))).digest()
    first, same = (replace(SPEC, head_parameters=dict(pairs)) for pairs in ((("a", 1), ("b", 2)), (("b", 2), ("a", 1))))
    assert first.digest() == same.digest()
    assert len(SPEC.digest()) == 16
    assert int(SPEC.digest(), 16) >= 0


@pytest.mark.parametrize(
    "damage", [{"plan": "freeze"}, {"weights": "stolen"}, {"optimization": {"batch_size": "many"}}, {"backbone": None}]
)
def test_values_that_are_no_spec_are_refused(damage):
    with pytest.raises(RunError, match="a stored trial specification is damaged"):
        spec_from_json(SPEC.to_json() | damage)


def test_a_sound_spec_passes_the_check():
    check_spec(SPEC)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"optimization": Optimization(optimizer="lion")}, "optimization.optimizer: .*'lion'"),
        ({"init_head": "zeros"}, "init_head: Input should be 'random' or 'probe', got 'zeros'"),
        ({"regularization": Regularization(class_weight="inverse")}, "regularization.class_weight: .*got 'inverse'"),
        ({"norm": "both"}, "norm: Input should be 'eval' or 'train', got 'both'"),
        ({"max_epochs": "many"}, "max_epochs: .*got 'many'"),
    ],
)
def test_a_spec_that_cannot_be_is_the_search_spaces_mistake(change, fault):
    with pytest.raises(ConfigError, match=f"the search space gave a trial that cannot be: {fault}"):
        check_spec(replace(SPEC, **change))
