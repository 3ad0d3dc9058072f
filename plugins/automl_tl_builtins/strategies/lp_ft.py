"""Train the head alone, then everything: the head's first, wild steps do not distort the transferred features.

Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", 2022.
"""

from __future__ import annotations

from collections.abc import Sequence

from automl_tl.plugin import FreezingStrategy, GroupPlan, LayerGroup, PlanContext, Suggest, TransferPlan, hookimpl


@hookimpl
def automl_tl_freezing_strategies() -> list[FreezingStrategy]:
    """Register linear probing followed by fine-tuning."""
    return [FreezingStrategy(name="lp_ft", description="the head alone for some epochs, then everything", plan=plan)]


def plan(trial: Suggest, groups: Sequence[LayerGroup], context: PlanContext) -> TransferPlan:
    """Tune every group from one epoch on; the parameter is `head_epochs`, clipped to leave one epoch for the rest."""
    start = min(trial.suggest_int("head_epochs", 1, 5), max(context.max_epochs - 1, 0))
    return TransferPlan(tuple(GroupPlan(group=group.name, action="tune", unfreeze_epoch=start) for group in groups))
