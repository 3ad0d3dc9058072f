"""What a run would do: the tables of `search --dry-run`."""

from __future__ import annotations

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from automl_tl.model.plan import tap
from automl_tl.plugin import LayerGroup, TransferPlan
from automl_tl.search.parameters import RecordingTrial, parameters_of
from automl_tl.search.space import Space, SpaceContext, suggest_plan


def print_config(console: Console, values: dict[str, object]) -> None:
    """Print the resolved configuration as YAML."""
    console.print(yaml.safe_dump(values, sort_keys=False).rstrip(), markup=False, highlight=False, soft_wrap=True)


def print_space(console: Console, space: Space, context: SpaceContext) -> None:
    """Print every parameter of the space with its domain."""
    table = Table(title="search space", title_justify="left")
    table.add_column("parameter")
    table.add_column("domain")
    for name, domain in parameters_of(space, context).items():
        table.add_row(escape(name), escape(domain))
    for name, value in context.overrides.items():
        if isinstance(value, str | int | float | bool | None):
            table.add_row(escape(name), escape(f"fixed: {value}"))
    console.print(table)


def print_strategies(console: Console, context: SpaceContext) -> None:
    """Print what each strategy trains of each backbone, at its first parameters."""
    table = Table(title="strategies: trainable parameters of the backbone, at their first values", title_justify="left")
    for name in ("strategy", "backbone", "trained", "of", "plan"):
        table.add_column(name, justify="right" if name in ("trained", "of") else "left")
    for strategy in context.strategies:
        for backbone, groups in context.backbones.items():
            plan = suggest_plan(RecordingTrial({}), context, backbone=backbone, strategy=strategy)
            trained, kept = _trained(plan, groups)
            table.add_row(strategy, backbone, f"{trained:,}", f"{kept:,}", " ".join(g.action for g in plan))
    console.print(table)


def _trained(plan: TransferPlan, groups: tuple[LayerGroup, ...]) -> tuple[int, int]:
    """Parameters in trained groups, and in all kept ones."""
    sizes = [group.parameters for group in groups]
    trained = sum(size for size, group in zip(sizes, plan, strict=True) if group.action in ("tune", "reinit"))
    return trained, sum(sizes[: tap(plan) + 1])
