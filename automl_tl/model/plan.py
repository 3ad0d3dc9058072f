"""What a transfer plan means: its rules, its cut and its tap, and its JSON form. Applying one is in `assemble`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

from automl_tl.errors import PluginError
from automl_tl.plugin import Action, GroupPlan, Part, TransferPlan

ACTIONS: tuple[str, ...] = get_args(Action)
PARTS: tuple[str, ...] = get_args(Part)


def cut(plan: TransferPlan) -> int:
    """Index of the first layer group that is ever trained; the number of kept groups when none is.

    Every group before it is a constant function of the sample.
    """
    trained = [index for index, group in enumerate(plan) if group.action in ("tune", "reinit")]
    return trained[0] if trained else tap(plan) + 1


def tap(plan: TransferPlan) -> int:
    """Index of the last layer group that is kept: the head reads its pooled output."""
    return sum(group.action != "drop" for group in plan) - 1


def kept(plan: TransferPlan) -> tuple[GroupPlan, ...]:
    """The groups that are not dropped, input to output."""
    return plan.groups[: tap(plan) + 1]


def check_plan(plan: TransferPlan, layer_groups: Sequence[str], *, max_epochs: int, owner: str) -> None:
    """Raise PluginError naming `owner` unless the plan can be carried out on these layer groups.

    Dropped groups must form the tail and leave at least one; whatever is tuned or re-initialized must train before the
    last epoch, because a re-initialized group that never trains is noise between layers that fit each other.
    """
    if not isinstance(plan, TransferPlan):
        raise PluginError(f"{owner}: expected a TransferPlan, got {plan!r}")
    names = [group.group for group in plan]
    if names != list(layer_groups):
        raise PluginError(f"{owner}: expected one entry per layer group in order {list(layer_groups)}, got {names}")
    for group in plan:
        _check_group(group, max_epochs, owner)
    actions = [group.action for group in plan]
    if "drop" in actions and set(actions[actions.index("drop") :]) != {"drop"}:
        raise PluginError(f"{owner}: dropped layer groups must form the tail, got {_sketch(plan)}")
    if tap(plan) < 0:
        raise PluginError(f"{owner}: drops every layer group; at least one must be kept for the head to read")


def _check_group(group: GroupPlan, max_epochs: int, owner: str) -> None:
    whose = f"{owner}: layer group {group.group!r}"
    if group.action not in ACTIONS:
        raise PluginError(f"{whose}: action must be one of {', '.join(ACTIONS)}, got {group.action!r}")
    if group.part not in PARTS:
        raise PluginError(f"{whose}: part must be one of {', '.join(PARTS)}, got {group.part!r}")
    if not group.lr_scale > 0:
        raise PluginError(f"{whose}: lr_scale must be > 0, got {group.lr_scale}")
    if group.action in ("tune", "reinit") and not 0 <= group.unfreeze_epoch < max_epochs:
        raise PluginError(
            f"{whose}: unfreeze_epoch must be in 0..{max_epochs - 1} (max_epochs is {max_epochs}), "
            f"got {group.unfreeze_epoch}; use action 'freeze' for a group that never trains"
        )
    if group.action == "reinit" and group.part != "all":
        raise PluginError(f"{whose}: a re-initialized group trains whole, got part={group.part!r}")


def _sketch(plan: TransferPlan) -> str:
    return " ".join(f"{group.group}={group.action}" for group in plan)


def plan_to_json(plan: TransferPlan) -> list[dict[str, Any]]:
    """The plan as a list of plain dictionaries, one a layer group."""
    return [asdict(group) for group in plan]


def plan_from_json(values: Sequence[dict[str, Any]]) -> TransferPlan:
    """The inverse of `plan_to_json`."""
    return TransferPlan(tuple(GroupPlan(**value) for value in values))
