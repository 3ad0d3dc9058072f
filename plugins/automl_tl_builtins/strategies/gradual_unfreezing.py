"""Train the head first, then thaw one more layer group at a time, from the last to the first.

Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification", 2018.
"""

from __future__ import annotations

from collections.abc import Sequence

from automl_tl.plugin import FreezingStrategy, GroupPlan, LayerGroup, PlanContext, Suggest, TransferPlan, hookimpl


@hookimpl
def automl_tl_freezing_strategies() -> list[FreezingStrategy]:
    """Register gradual unfreezing."""
    description = "the head first, then one more layer group every few epochs, from the last to the first"
    return [FreezingStrategy(name="gradual_unfreezing", description=description, plan=plan)]


def plan(trial: Suggest, groups: Sequence[LayerGroup], context: PlanContext) -> TransferPlan:
    """Tune every group, each later than the one after it; the parameter is `epochs_per_group`.

    When the epochs do not suffice, the steps shrink: every group starts to train before the last epoch.
    """
    step = trial.suggest_int("epochs_per_group", 1, 3)
    size = len(groups)
    latest = max(context.max_epochs - 2, 0)

    def start(position: int) -> int:
        turn = size - position  # 1 for the last group
        return min(turn * step, turn * latest // size)

    return TransferPlan(
        tuple(
            GroupPlan(group=group.name, action="tune", unfreeze_epoch=start(position))
            for position, group in enumerate(groups)
        )
    )
