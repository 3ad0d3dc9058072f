"""Fine-tune the whole backbone from the first epoch, all layer groups at one learning rate."""

from __future__ import annotations

from collections.abc import Sequence

from automl_tl.plugin import FreezingStrategy, GroupPlan, LayerGroup, PlanContext, Suggest, TransferPlan, hookimpl


@hookimpl
def automl_tl_freezing_strategies() -> list[FreezingStrategy]:
    """Register full fine-tuning."""
    return [FreezingStrategy(name="full_finetune", description="all layer groups fine-tuned", plan=plan)]


def plan(trial: Suggest, groups: Sequence[LayerGroup], context: PlanContext) -> TransferPlan:
    """Tune every group; no parameters."""
    return TransferPlan(tuple(GroupPlan(group=group.name, action="tune") for group in groups))
