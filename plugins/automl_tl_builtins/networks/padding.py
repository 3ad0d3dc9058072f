"""A convolution that pads by itself, and quickly.

Padding a map beforehand copies it, so convolutions had better do it inside. oneDNN, which computes them on a CPU, does
so quickly as long as the map is as large as the kernel. The gradients of smaller ones, as images of 64 pixels end in,
it leaves to code that is many times slower, and the smallest of all even forward. See `benchmarks/padding.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class PaddedConv2d(nn.Conv2d):
    """Map (N, C, H, W) as `nn.Conv2d` with zeros of half a kernel around it does."""

    def __init__(self, channels: int, width: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, width, kernel, stride, padding=kernel // 2, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, H/stride, W/stride)."""
        kernel, size = self.kernel_size[0], min(x.shape[2:])
        learns = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if size >= (kernel if learns else kernel // 2):
            return super().forward(x)
        padded = functional.pad(x, (kernel // 2,) * 4)
        return torch.conv2d(padded, self.weight, None, self.stride, groups=self.groups)
