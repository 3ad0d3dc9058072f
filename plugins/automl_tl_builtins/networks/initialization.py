"""Random weights for convolutional networks that keep the signal's size without BatchNorm statistics.

He et al., "Delving Deep into Rectifiers", 2015. PyTorch's default shrinks the signal in every layer. BatchNorm hides
that while it trains, but re-initialized layer groups may run with frozen statistics, and there the signal would vanish.
"""

from __future__ import annotations

from torch import nn


def he_initialize(network: nn.Module) -> None:
    """Draw the weights of every convolution anew from He's normal distribution, in place."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
