"""Freeze the whole backbone and train the head only, on the last layer group's output."""

from __future__ import annotations

from collections.abc import Sequence

from automl_tl.plugin import FreezingStrategy, GroupPlan, LayerGroup, PlanContext, Suggest, TransferPlan, hookimpl


@hookimpl
def automl_tl_freezing_strategies() -> list[FreezingStrategy]:
    """Register the linear probe."""
    return [
        FreezingStrategy(name="linear_probe", description="all layer groups frozen, the head alone trains", plan=plan)
    ]


def plan(trial: Suggest, groups: Sequence[LayerGroup], context: PlanContext) -> TransferPlan:
    """Freeze every group; no parameters."""
    return TransferPlan(tuple(GroupPlan(group=group.name, action="freeze") for group in groups))
