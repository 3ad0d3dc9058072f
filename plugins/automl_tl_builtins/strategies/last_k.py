"""Fine-tune the last k layer groups and freeze those before them: the common recipe."""

from __future__ import annotations

from collections.abc import Sequence

from automl_tl.plugin import FreezingStrategy, GroupPlan, LayerGroup, PlanContext, Suggest, TransferPlan, hookimpl


@hookimpl
def automl_tl_freezing_strategies() -> list[FreezingStrategy]:
    """Register the strategy."""
    return [FreezingStrategy(name="last_k", description="the last k layer groups fine-tuned", plan=plan)]


def plan(trial: Suggest, groups: Sequence[LayerGroup], context: PlanContext) -> TransferPlan:
    """Tune the last groups; the parameter is `k`, how many."""
    cut = len(groups) - trial.suggest_int("k", 1, len(groups))
    return TransferPlan(
        tuple(
            GroupPlan(group=group.name, action="freeze" if position < cut else "tune")
            for position, group in enumerate(groups)
        )
    )
