"""Surgical fine-tuning: train one layer group, keep all others as they were transferred.

Lee et al., "Surgical Fine-Tuning Improves Adaptation to Distribution Shifts", ICLR 2023: which group is best depends on
how the target task differs from the source task. An early one when the inputs look different, a late one when the
classes do. So the search decides.
"""

from __future__ import annotations

from collections.abc import Sequence

from automl_tl.plugin import FreezingStrategy, GroupPlan, LayerGroup, PlanContext, Suggest, TransferPlan, hookimpl


@hookimpl
def automl_tl_freezing_strategies() -> list[FreezingStrategy]:
    """Register surgical fine-tuning."""
    return [FreezingStrategy(name="surgical", description="fine-tune one layer group, freeze the others", plan=plan)]


def plan(trial: Suggest, groups: Sequence[LayerGroup], context: PlanContext) -> TransferPlan:
    """Fine-tune the group that the trial picks."""
    tuned = trial.suggest_categorical("tuned_group", [group.name for group in groups])
    return TransferPlan(
        tuple(GroupPlan(group=group.name, action="tune" if group.name == tuned else "freeze") for group in groups)
    )
