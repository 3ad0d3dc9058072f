"""What a head or a freezing strategy lets the search choose, found by letting it suggest. Not a check: for reading."""

from __future__ import annotations

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from automl_tl.plugin import Choice, FreezingStrategy, Head
from automl_tl.testing.draws import draws
from automl_tl.testing.strategies import example_context, example_groups

DRAWS = 16


def search_parameters(item: Head | FreezingStrategy, *, depth: int) -> dict[str, dict[str, Choice | list[Choice]]]:
    """Return the range or the choices of each parameter; those of a strategy are for a backbone of `depth` groups."""
    space: dict[str, BaseDistribution] = {}
    for draw in draws(DRAWS):
        if isinstance(item, Head):
            item.build(draw, in_features=64, n_outputs=10)
        else:
            item.plan(draw, example_groups(depth), example_context())
        space |= draw.space
    return {name: _domain(distribution) for name, distribution in space.items()}


def _domain(distribution: BaseDistribution) -> dict[str, Choice | list[Choice]]:
    if isinstance(distribution, CategoricalDistribution):
        return {"choices": list(distribution.choices)}
    if isinstance(distribution, IntDistribution | FloatDistribution):
        return {"low": distribution.low, "high": distribution.high, "log": distribution.log}
    raise TypeError(f"unknown kind of range {distribution}")
