"""Pooling: one feature vector a sample from whatever a layer group puts out."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from automl_tl.plugin import Tokens

Activation = Tensor | Tokens
Pooling = Literal["mean", "mean_std"]


def pool(activation: Activation, pooling: Pooling = "mean") -> Tensor:
    """Mean, and standard deviation where asked for, over pixels or real tokens.

    (N, C, H, W), (N, D) or Tokens (N, L, D) -> (N, C) or (N, D); with `mean_std` twice as wide, the means first. A
    vector has nothing to be pooled over and stays as it is.
    """
    if isinstance(activation, Tokens):
        mask = activation.mask.unsqueeze(-1).to(activation.values.dtype)  # (N, L, 1)
        count = mask.sum(1).clamp(min=1)
        mean = (activation.values * mask).sum(1) / count
        if pooling == "mean":
            return mean
        squares = ((activation.values - mean.unsqueeze(1)).square() * mask).sum(1) / count
        return torch.cat([mean, _root(squares)], 1)
    if activation.ndim != 4:
        return activation
    mean = activation.mean((2, 3))
    if pooling == "mean":
        return mean
    # Not torch's `var`: over the pixels of channels-last maps it is slow on a CPU.
    return torch.cat([mean, _root((activation - mean[:, :, None, None]).square().mean((2, 3)))], 1)


def _root(variance: Tensor) -> Tensor:
    """A square root whose gradient is finite at a constant map."""
    return (variance + 1e-12).sqrt()
