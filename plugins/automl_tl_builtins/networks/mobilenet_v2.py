"""MobileNetV2 of width 1.0 in nine layer groups; reads torchvision's checkpoint without torchvision.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from automl_tl_builtins.networks.initialization import he_initialize
from automl_tl_builtins.networks.padding import PaddedConv2d

STAGES = (  # expansion, channels, blocks, stride of the first block: table 2 of the paper
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(weights: Path | None) -> nn.Sequential:
    """Return the network (N, 3, H, W) -> (N, 1280, H/32, W/32)."""
    layers: list[nn.Module] = [_convolution(3, 32, kernel=3, stride=2)]
    channels = 32
    ends = [1]  # where each group ends in torchvision's flat list of layers
    for expansion, width, blocks, stride in STAGES:
        for block in range(blocks):
            layers.append(InvertedResidual(channels, width, stride=stride if block == 0 else 1, expansion=expansion))
            channels = width
        ends.append(len(layers))
    layers.append(_convolution(channels, 1280, kernel=1))
    ends.append(len(layers))
    flat = nn.Sequential(*layers)
    if weights is None:
        he_initialize(flat)
    else:
        stored = torch.load(weights, map_location="cpu", weights_only=True)
        body = {
            key.removeprefix("features."): value for key, value in stored.items() if not key.startswith("classifier.")
        }
        flat.load_state_dict(body, strict=True)
    names = ("stem", *(f"stage{number}" for number in range(1, len(STAGES) + 1)), "top")
    starts = (0, *ends)
    return nn.Sequential(OrderedDict((name, flat[starts[i] : ends[i]]) for i, name in enumerate(names)))


class InvertedResidual(nn.Module):
    """Widen, convolve each channel by itself, narrow; with a skip connection where the shape stays."""

    def __init__(self, channels: int, width: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        widen = [] if expansion == 1 else [_convolution(channels, hidden, kernel=1)]
        depthwise = _convolution(hidden, hidden, kernel=3, stride=stride, groups=hidden)
        self.conv = nn.Sequential(*widen, depthwise, nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width))
        self.skip = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, width, H/stride, W/stride)."""
        y: Tensor = self.conv(x)
        return x + y if self.skip else y


def _convolution(channels: int, width: int, *, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = PaddedConv2d(channels, width, kernel, stride=stride, groups=groups)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU6(inplace=True))
