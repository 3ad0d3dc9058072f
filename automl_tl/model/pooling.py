"""Pooling: one feature vector a sample from whatever a layer group puts out."""

from __future__ import annotations

from torch import Tensor

from automl_tl.plugin import Tokens

Activation = Tensor | Tokens


def pool(activation: Activation) -> Tensor:
    """Mean over pixels or real tokens: (N, C, H, W), (N, D) or Tokens (N, L, D) -> (N, C) or (N, D)."""
    if isinstance(activation, Tokens):
        mask = activation.mask.unsqueeze(-1).to(activation.values.dtype)  # (N, L, 1)
        return (activation.values * mask).sum(1) / mask.sum(1).clamp(min=1)
    return activation.mean((2, 3)) if activation.ndim == 4 else activation


def to_device(activation: Activation, device: str) -> Activation:
    """The activation on `device`."""
    if isinstance(activation, Tokens):
        return Tokens(activation.values.to(device), activation.mask.to(device))
    return activation.to(device)
