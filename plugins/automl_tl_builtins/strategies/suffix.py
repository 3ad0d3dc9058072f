"""Freeze, fine-tune, re-initialize, drop, in this order along the depth: three whole numbers instead of 4^S plans.

Late layer groups may know too much of the source task, so the head need not read the last one: Evci et al., "Head2Toe:
Utilizing Intermediate Representations for Better Transfer Learning", 2022. Re-initializing the last kept groups is from
Zhang et al., "Revisiting Few-sample BERT Fine-tuning", 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

from automl_tl.plugin import (
    Action,
    FreezingStrategy,
    GroupPlan,
    LayerGroup,
    PlanContext,
    Suggest,
    TransferPlan,
    hookimpl,
)


@hookimpl
def automl_tl_freezing_strategies() -> list[FreezingStrategy]:
    """Register the strategy."""
    description = (
        "where the head reads (the rest is dropped), how many groups below train, how many of these start anew"
    )
    return [FreezingStrategy(name="suffix", description=description, plan=plan)]


def plan(trial: Suggest, groups: Sequence[LayerGroup], context: PlanContext) -> TransferPlan:
    """Place the tap and what happens below it.

    Parameters: `tap`, the groups kept; `n_train`, how many of the last kept ones train; `n_reinit`, how many of the
    last of those are re-initialized. Ranges depend on the number of groups only; values too large are clipped.
    """
    size = len(groups)
    tap = trial.suggest_int("tap", 1, size)
    n_train = min(trial.suggest_int("n_train", 0, size), tap)
    n_reinit = min(trial.suggest_int("n_reinit", 0, min(2, size)), n_train)

    def action(position: int) -> Action:
        if position >= tap:
            return "drop"
        if position >= tap - n_reinit:
            return "reinit"
        return "tune" if position >= tap - n_train else "freeze"

    return TransferPlan(
        tuple(GroupPlan(group=group.name, action=action(position)) for position, group in enumerate(groups))
    )
