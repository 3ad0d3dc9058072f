"""Transfer the first k layer groups and train the rest from scratch.

Yosinski et al., "How transferable are features in deep neural networks?", 2014: their BnA networks when the transferred
groups stay frozen, and BnA+ when they are fine-tuned.
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
    description = "the first k layer groups transferred, the rest re-initialized"
    return [FreezingStrategy(name="transfer_k", description=description, plan=plan)]


def plan(trial: Suggest, groups: Sequence[LayerGroup], context: PlanContext) -> TransferPlan:
    """Re-initialize the groups after the first `k`; `tune_transferred` says whether those first ones train too."""
    k = trial.suggest_int("k", 1, len(groups))
    transferred: Action = "tune" if trial.suggest_categorical("tune_transferred", (False, True)) else "freeze"
    return TransferPlan(
        tuple(
            GroupPlan(group=group.name, action=transferred if position < k else "reinit")
            for position, group in enumerate(groups)
        )
    )
