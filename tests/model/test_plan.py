from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl_tl.errors import PluginError
from automl_tl.model.plan import check_plan, cut, kept, plan_from_json, plan_to_json, tap
from automl_tl.plugin import GroupPlan, TransferPlan

GROUPS = ("stem", "middle", "top")


def plan_of(*actions):
    return TransferPlan(tuple(GroupPlan(group=g, action=a) for g, a in zip(GROUPS, actions, strict=True)))


@given(data=st.data())
@settings(deadline=None, max_examples=50)
def test_a_valid_plan_passes_and_comes_back_from_json(plans, data):
    plan = data.draw(plans(GROUPS))
    check_plan(plan, GROUPS, max_epochs=3, owner="strategy 'x'")
    assert plan_from_json(json.loads(json.dumps(plan_to_json(plan)))) == plan


@given(data=st.data())
@settings(deadline=None, max_examples=50)
def test_nothing_before_the_cut_trains_and_nothing_after_the_tap_is_kept(plans, data):
    plan = data.draw(plans(GROUPS))
    assert all(group.action == "freeze" for group in plan.groups[: cut(plan)])
    assert cut(plan) == len(kept(plan)) or plan.groups[cut(plan)].action in ("tune", "reinit")
    assert kept(plan)[-1] == plan.groups[tap(plan)]
    assert [group.action == "drop" for group in plan] == [False] * (tap(plan) + 1) + [True] * (2 - tap(plan))


@pytest.mark.parametrize(
    ("actions", "where_cut", "where_tap"),
    [
        (("freeze", "freeze", "freeze"), 3, 2),
        (("freeze", "freeze", "drop"), 2, 1),
        (("freeze", "tune", "drop"), 1, 1),
        (("tune", "freeze", "freeze"), 0, 2),
        (("freeze", "tune", "reinit"), 1, 2),
        (("reinit", "drop", "drop"), 0, 0),
    ],
)
def test_cut_and_tap(actions, where_cut, where_tap):
    plan = plan_of(*actions)
    assert (cut(plan), tap(plan)) == (where_cut, where_tap)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": "melt"}, "layer group 'middle': action must be one of freeze, tune, reinit, drop, got 'melt'"),
        ({"part": "lora"}, "layer group 'middle': part must be one of all, norm, bias, got 'lora'"),
        ({"lr_scale": 0.0}, "layer group 'middle': lr_scale must be > 0, got 0.0"),
        ({"lr_scale": float("nan")}, "layer group 'middle': lr_scale must be > 0, got nan"),
        ({"unfreeze_epoch": -1}, "unfreeze_epoch must be in 0..3 (max_epochs is 4), got -1"),
        ({"unfreeze_epoch": 4}, "got 4; use action 'freeze' for a group that never trains"),
        ({"action": "reinit", "unfreeze_epoch": 4}, "got 4; use action 'freeze' for a group that never trains"),
        ({"action": "reinit", "part": "bias"}, "a re-initialized group trains whole, got part='bias'"),
        ({"action": "drop"}, "dropped layer groups must form the tail, got stem=freeze middle=drop top=tune"),
    ],
)
def test_a_flaw_in_a_group_is_named_with_its_owner(change, message):
    stem, middle, top = plan_of("freeze", "tune", "tune")
    plan = TransferPlan((stem, replace(middle, **change), top))
    with pytest.raises(PluginError, match=f"^strategy 'x': .*{re.escape(message)}"):
        check_plan(plan, GROUPS, max_epochs=4, owner="strategy 'x'")


def test_a_frozen_group_needs_no_unfreeze_epoch():
    stem, middle, top = plan_of("freeze", "freeze", "freeze")
    check_plan(
        TransferPlan((stem, middle, replace(top, unfreeze_epoch=99))), GROUPS, max_epochs=4, owner="strategy 'x'"
    )


def test_at_least_one_group_is_kept():
    with pytest.raises(PluginError, match="drops every layer group; at least one must be kept for the head to read"):
        check_plan(plan_of("drop", "drop", "drop"), GROUPS, max_epochs=4, owner="strategy 'x'")


def test_every_group_is_named_once_and_in_order():
    stem, middle, top = plan_of("freeze", "freeze", "freeze")
    for groups in ((stem, middle), (middle, stem, top), (stem, middle, top, top)):
        with pytest.raises(
            PluginError, match=r"expected one entry per layer group in order \['stem', 'middle', 'top'\]"
        ):
            check_plan(TransferPlan(groups), GROUPS, max_epochs=4, owner="strategy 'x'")


def test_something_else_is_no_plan():
    with pytest.raises(PluginError, match="strategy 'x': expected a TransferPlan, got 'freeze'"):
        check_plan("freeze", GROUPS, max_epochs=4, owner="strategy 'x'")
