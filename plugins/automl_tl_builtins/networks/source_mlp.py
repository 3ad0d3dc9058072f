"""A network for rows of a table: three layers of 256 units, to be trained on a source task."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

LAYERS, WIDTH = 3, 256


def source_mlp(features: int) -> nn.Sequential:
    """Return the network (N, features) -> (N, 256).

    LayerNorm and not BatchNorm: it has no statistics of the source task that would have to fit the target task too.
    """
    groups: OrderedDict[str, nn.Module] = OrderedDict()
    for number in range(1, LAYERS + 1):
        linear = nn.Linear(features if number == 1 else WIDTH, WIDTH)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        groups[f"layer{number}"] = nn.Sequential(linear, nn.LayerNorm(WIDTH), nn.ReLU())
    return nn.Sequential(groups)
