"""A small network for small images: four 3x3 convolutions, to be trained on a source task."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from automl_tl_builtins.networks.initialization import he_initialize

WIDTHS = (32, 64, 128, 128)


def source_cnn() -> nn.Sequential:
    """Return the network (N, 3, H, W) -> (N, 128, H/8, W/8), about 240,000 parameters."""
    groups: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for number, width in enumerate(WIDTHS, start=1):
        convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        layers = [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        if number < len(WIDTHS):  # halve the resolution, but leave the head's pooling something to average
            layers.append(nn.MaxPool2d(2))
        groups[f"conv{number}"] = nn.Sequential(*layers)
        channels = width
    network = nn.Sequential(groups)
    he_initialize(network)
    return network
