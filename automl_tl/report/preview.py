"""What a run would do: the tables of `search --dry-run`."""

from __future__ import annotations

import itertools

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from automl_tl.plugin import LayerGroup, TransferPlan
from automl_tl.search.parameters import RecordingTrial, parameters_of
from automl_tl.search.space import Space, SpaceContext, suggest_plan


def print_config(console: Console, values: dict[str, object]) -> None:
    """Print the resolved configuration as YAML."""
    console.print(yaml.safe_dump(values, sort_keys=False).rstrip(), markup=False, highlight=False, soft_wrap=True)


def print_space(console: Console, space: Space, context: SpaceContext) -> None:
    """Print every parameter of the space with its domain."""
    table = Table(title="search space", title_justify="left")
    table.add_column("parameter", overflow="fold")
    table.add_column("domain")
    for name, domain in parameters_of(space, context).items():
        table.add_row(escape(name), escape(domain))
    for name, value in context.overrides.items():
        if isinstance(value, str | int | float | bool | None):
            table.add_row(escape(name), escape(f"fixed: {value}"))
    console.print(table)


def print_strategies(console: Console, context: SpaceContext) -> None:
    """Print what each strategy trains of each backbone, at both ends of its parameters."""
    for backbone, groups in context.backbones.items():
        table = Table(title=f"{backbone}: parameters that each strategy trains", title_justify="left")
        table.add_column("strategy")
        for end in ("at its lowest values", "at its highest"):
            table.add_column(end, justify="right")
            table.add_column("plan")
        for strategy in context.strategies:
            cells = []
            for upper in (False, True):
                trial = RecordingTrial(upper=upper)
                plan = suggest_plan(trial, context, backbone=backbone, strategy=strategy)
                cells += [f"{_trained(plan, groups):,}", _sketch(plan)]
            table.add_row(strategy, *cells)
        console.print(table)


def _trained(plan: TransferPlan, groups: tuple[LayerGroup, ...]) -> int:
    pairs = zip(groups, plan, strict=True)
    return sum(group.parameters for group, each in pairs if each.action in ("tune", "reinit"))


def _sketch(plan: TransferPlan) -> str:
    """`8 freeze, 1 tune`."""
    runs = itertools.groupby(group.action for group in plan)
    return ", ".join(f"{len(list(run))} {action}" for action, run in runs)
