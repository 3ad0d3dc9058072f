"""What every freezing strategy must do. Each check plans for shallow and deep backbones, long and one-epoch runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import NamedTuple, get_args

from optuna.trial import FixedTrial

from automl_tl.model.plan import plan_from_json, plan_to_json
from automl_tl.plugin import Action, FreezingStrategy, GroupPlan, LayerGroup, Part, PlanContext, TransferPlan
from automl_tl.testing.draws import Draw, draws
from automl_tl.testing.outcome import Nonconformance, require

DEPTHS = (1, 3, 12)
EPOCHS = (1, 20)
DRAWS = 16


class Case(NamedTuple):
    """What a strategy decided, and from what."""

    groups: tuple[LayerGroup, ...]
    context: PlanContext
    draw: Draw
    plan: TransferPlan


def plan_names_every_group(strategy: FreezingStrategy) -> None:
    """The plan is a `TransferPlan` with one entry a layer group, input to output."""
    for case in _cases(strategy):
        require(
            isinstance(case.plan, TransferPlan) and all(isinstance(group, GroupPlan) for group in case.plan),
            f"{strategy.name}: plan must return a TransferPlan of GroupPlan, got {case.plan!r}",
        )
        expected, named = [group.name for group in case.groups], [group.group for group in case.plan]
        require(
            named == expected,
            f"{strategy.name}: the plan must name every layer group once, in the order {expected}; got {named}",
        )


def actions_and_parts_are_known(strategy: FreezingStrategy) -> None:
    """Each action and each part is one that the host can carry out."""
    for group in _group_plans(strategy):
        require(
            group.action in get_args(Action),
            f"{strategy.name}: action must be one of {get_args(Action)}, got {group.action!r}",
        )
        require(
            group.part in get_args(Part), f"{strategy.name}: part must be one of {get_args(Part)}, got {group.part!r}"
        )


def dropped_groups_form_the_tail(strategy: FreezingStrategy) -> None:
    """Dropped groups come last, and at least one is kept for the head to read."""
    for case in _cases(strategy):
        actions = [group.action for group in case.plan]
        kept = len(actions) - actions.count("drop")
        require(kept > 0, f"{strategy.name}: at least one layer group must be kept, got {actions}")
        require("drop" not in actions[:kept], f"{strategy.name}: dropped layer groups must come last, got {actions}")


def tuned_groups_train(strategy: FreezingStrategy) -> None:
    """A group that is called tuned trains for at least one epoch of the run."""
    for case in _cases(strategy):
        for group in case.plan:
            require(
                group.action != "tune" or 0 <= group.unfreeze_epoch < case.context.max_epochs,
                f"{strategy.name}: a tuned layer group must have 0 <= unfreeze_epoch < max_epochs "
                f"({case.context.max_epochs}), got {group.unfreeze_epoch} for {group.group!r}",
            )


def reinitialized_groups_train(strategy: FreezingStrategy) -> None:
    """No layer is left at random values: a re-initialized group trains, and all of it does."""
    for case in _cases(strategy):
        for group in case.plan:
            trains = 0 <= group.unfreeze_epoch < case.context.max_epochs and group.part == "all"
            require(
                group.action != "reinit" or trains,
                f"{strategy.name}: a re-initialized layer group must train as a whole, that is part='all' and "
                f"0 <= unfreeze_epoch < max_epochs ({case.context.max_epochs}); got {group}",
            )


def learning_rate_scales_are_positive(strategy: FreezingStrategy) -> None:
    """Scales multiply a learning rate: finite and above 0."""
    for group in _group_plans(strategy):
        require(
            math.isfinite(group.lr_scale) and group.lr_scale > 0,
            f"{strategy.name}: lr_scale must be finite and > 0, got {group.lr_scale} for {group.group!r}",
        )


def plan_is_a_pure_function(strategy: FreezingStrategy) -> None:
    """The same parameters give the same plan, so that a trial can be told from its parameters."""
    for case in _cases(strategy):
        again = strategy.plan(FixedTrial(case.draw.parameters), case.groups, case.context)
        require(
            case.plan == again,
            f"{strategy.name}: the parameters {case.draw.parameters} gave two plans: {case.plan}, then {again}",
        )


def search_space_is_static(strategy: FreezingStrategy) -> None:
    """Every trial of a backbone suggests the same names and ranges; a sampler learns little from others."""
    first: dict[tuple[int, int], Draw] = {}
    for case in _cases(strategy):
        expected = first.setdefault((len(case.groups), case.context.max_epochs), case.draw).space
        require(
            case.draw.space == expected,
            f"{strategy.name}: every trial must suggest the same names and ranges; got {expected}, "
            f"then {case.draw.space}",
        )


def plan_survives_json(strategy: FreezingStrategy) -> None:
    """The plan is plain data: written as JSON and read back, it is the same plan."""
    for case in _cases(strategy):
        try:
            stored = json.dumps(plan_to_json(case.plan))
        except TypeError as error:
            raise Nonconformance(f"{strategy.name}: the plan must hold plain values only: {error}") from error
        read = plan_from_json(json.loads(stored))
        require(case.plan == read, f"{strategy.name}: the plan {case.plan} is stored as JSON and read as {read}")


STRATEGY_CHECKS = (
    plan_names_every_group,
    actions_and_parts_are_known,
    dropped_groups_form_the_tail,
    tuned_groups_train,
    reinitialized_groups_train,
    learning_rate_scales_are_positive,
    plan_is_a_pure_function,
    search_space_is_static,
    plan_survives_json,
)


def example_groups(depth: int) -> tuple[LayerGroup, ...]:
    """Return made-up layer groups: deeper ones have more parameters, all cost the same."""
    return tuple(
        LayerGroup(name=f"group{number}", parameters=1000 * 2**number, flop_share=1 / depth)
        for number in range(1, depth + 1)
    )


def example_context(max_epochs: int = 20) -> PlanContext:
    """Return a made-up task."""
    return PlanContext(backbone="example", modality="image", n_train=100, n_classes=10, max_epochs=max_epochs)


def _cases(strategy: FreezingStrategy) -> Iterator[Case]:
    for depth in DEPTHS:
        for max_epochs in EPOCHS:
            groups, context = example_groups(depth), example_context(max_epochs)
            for draw in draws(DRAWS):
                yield Case(groups, context, draw, strategy.plan(draw, groups, context))


def _group_plans(strategy: FreezingStrategy) -> Iterator[GroupPlan]:
    return (group for case in _cases(strategy) for group in case.plan)
