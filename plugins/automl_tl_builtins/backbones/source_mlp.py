"""A network for tables, without weights of its own: trained on the run's source task, or random."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from automl_tl.plugin import Backbone, TabularInput, hookimpl

if TYPE_CHECKING:
    from torch import nn


@hookimpl
def automl_tl_backbones() -> list[Backbone]:
    """Register the network for tables."""
    return [
        Backbone(
            name="source_mlp",
            description="three layers of 256 units for tables, to be trained on a source task",
            input=TabularInput(),
            layer_groups=("layer1", "layer2", "layer3"),
            build=build,
        )
    ]


def build(*, input_shape: tuple[int, ...], weights: Path | None) -> nn.Module:
    """Build the network for rows of `input_shape` (D,)."""
    from automl_tl_builtins.networks.source_mlp import source_mlp

    (features,) = input_shape
    return source_mlp(features)
