"""A small network for small images, without weights of its own: trained on the run's source task, or random."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from automl_tl.plugin import Backbone, ImageInput, hookimpl

if TYPE_CHECKING:
    from torch import nn


@hookimpl
def automl_tl_backbones() -> list[Backbone]:
    """Register the network for small images."""
    return [
        Backbone(
            name="source_cnn",
            description="four convolutions for small images, to be trained on a source task",
            input=ImageInput(size=32, smallest=16),
            layer_groups=("conv1", "conv2", "conv3", "conv4"),
            build=build,
        )
    ]


def build(*, input_shape: tuple[int, ...], weights: Path | None) -> nn.Module:
    """Build the network for images of any size from 16 pixels up."""
    from automl_tl_builtins.networks.source_cnn import source_cnn

    return source_cnn()
