"""Fine-tune the whole backbone, the earlier a layer group the more slowly.

Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification", 2018, who divide the learning rate by
2.6 from each layer to the one before it; milder decays are usual for vision networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from automl_tl.plugin import FreezingStrategy, GroupPlan, LayerGroup, PlanContext, Suggest, TransferPlan, hookimpl

DECAYS = (0.95, 0.9, 0.75, 0.65, 0.385)  # the last is 1/2.6


@hookimpl
def automl_tl_freezing_strategies() -> list[FreezingStrategy]:
    """Register discriminative learning rates."""
    description = "all layer groups fine-tuned, at a learning rate that decays from the last to the first"
    return [FreezingStrategy(name="discriminative", description=description, plan=plan)]


def plan(trial: Suggest, groups: Sequence[LayerGroup], context: PlanContext) -> TransferPlan:
    """Tune every group; the parameter is `decay`, a group's learning rate relative to the next one's."""
    decay = cast(float, trial.suggest_categorical("decay", DECAYS))
    last = len(groups) - 1
    return TransferPlan(
        tuple(
            GroupPlan(group=group.name, action="tune", lr_scale=decay ** (last - position))
            for position, group in enumerate(groups)
        )
    )
