"""One linear layer: the standard head, and with all groups frozen the standard probe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from automl_tl.plugin import Head, Suggest, hookimpl

if TYPE_CHECKING:
    from torch import nn


@hookimpl
def automl_tl_heads() -> list[Head]:
    """Register the linear head."""
    return [Head(name="linear", description="one linear layer", build=build)]


def build(trial: Suggest, *, in_features: int, n_outputs: int) -> nn.Module:
    """Build the layer; it starts near zero, so that every class starts equally likely whatever the features' size."""
    from torch import nn

    layer = nn.Linear(in_features, n_outputs)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer
