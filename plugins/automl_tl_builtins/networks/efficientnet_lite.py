"""EfficientNet-Lite 0, 1 and 2, regrouped from the package `efficientnet_lite_pytorch` into nine layer groups.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019, in the variant without
squeeze-and-excitation and with ReLU6. The two stages of stride 16 (80 and 112 channels in Lite0) stay apart, because
the end of the second is often the best place to read features for a target task far from ImageNet.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import groupby
from pathlib import Path

import torch
from torch import nn

from automl_tl_builtins.networks.initialization import he_initialize
from automl_tl_builtins.networks.padding import PaddedConv2d


def efficientnet_lite(name: str, weights: Path | None) -> nn.Sequential:
    """Return the network (N, 3, H, W) -> (N, 1280, H/32, W/32); `name` is the library's, e.g. "efficientnet-lite0".

    Blocks keep the padding of the size at which the weights were trained; any other size works. Stochastic depth is
    left out: the library applies it in the whole network's forward pass only, not in the blocks.
    """
    from efficientnet_lite_pytorch import EfficientNet

    whole = EfficientNet.from_name(name)
    if weights is None:
        he_initialize(whole)
    else:
        whole.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=True)
    _quicken(whole)
    groups: OrderedDict[str, nn.Module] = OrderedDict()
    groups["stem"] = nn.Sequential(whole._conv_stem, whole._bn0, nn.ReLU6(inplace=True))
    stages = groupby(whole._blocks, key=lambda block: block._block_args.output_filters)  # widths only ever grow
    for number, (_, blocks) in enumerate(stages, start=1):
        groups[f"stage{number}"] = nn.Sequential(*blocks)
    groups["top"] = nn.Sequential(whole._conv_head, whole._bn1, nn.ReLU6(inplace=True))
    return nn.Sequential(groups)


def _quicken(whole: nn.Module) -> None:
    """Compute the same in less time: the library copies every map to pad it, and to cut it off at 0 and 6.

    What pads more on one side than on the other, as convolutions of stride 2 do, stays.
    """
    for module in list(whole.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                child.inplace = True
            elif isinstance(child, nn.Conv2d):
                setattr(module, name, _padding_inside(child))


def _padding_inside(convolution: nn.Conv2d) -> nn.Conv2d:
    """The same convolution, which has no bias, without the library's separate padding."""
    kernel, padding = convolution.kernel_size[0], convolution.get_submodule("static_padding")
    if not isinstance(padding, nn.ZeroPad2d) or set(padding.padding) != {kernel // 2}:
        return convolution
    with torch.device("meta"):  # draws no weights
        padded = PaddedConv2d(
            convolution.in_channels,
            convolution.out_channels,
            kernel,
            stride=convolution.stride[0],
            groups=convolution.groups,
        )
    padded.weight = convolution.weight
    return padded
