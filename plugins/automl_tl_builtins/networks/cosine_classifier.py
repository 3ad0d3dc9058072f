"""A classifier by the angle between features and one learned prototype a class."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SCALE = 10.0  # where the learned scale starts: logits between -10 and 10
EPSILON = 1e-6  # shorter vectors are not blown up to length one, which would blow up their gradients too


class CosineClassifier(nn.Module):
    """Logits are a learned scale times the cosine of features and prototypes."""

    def __init__(self, in_features: int, n_outputs: int) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(n_outputs, in_features) / in_features**0.5)
        self.scale = nn.Parameter(torch.tensor(SCALE))

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, in_features) to (N, n_outputs)."""
        directions = functional.normalize(features, dim=1, eps=EPSILON)
        return self.scale * functional.linear(directions, functional.normalize(self.prototypes, dim=1, eps=EPSILON))
