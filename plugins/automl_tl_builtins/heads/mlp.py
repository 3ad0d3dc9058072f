"""One hidden layer: for taps whose features do not yet separate the classes by planes."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from automl_tl.plugin import Head, Suggest, hookimpl

if TYPE_CHECKING:
    from torch import nn


@hookimpl
def automl_tl_heads() -> list[Head]:
    """Register the head with one hidden layer."""
    return [Head(name="mlp", description="one hidden layer of 128, 256 or 512 units", build=build)]


def build(trial: Suggest, *, in_features: int, n_outputs: int) -> nn.Module:
    """Build both layers; the parameter is `hidden`, the units between them."""
    from torch import nn

    hidden = cast(int, trial.suggest_categorical("hidden", (128, 256, 512)))
    output = nn.Linear(hidden, n_outputs)
    nn.init.normal_(output.weight, std=0.01)
    nn.init.zeros_(output.bias)
    return nn.Sequential(nn.Linear(in_features, hidden), nn.GELU(), output)
