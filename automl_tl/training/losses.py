"""What a trial minimizes: cross-entropy of the task, and the pull towards transferred weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from automl_tl.model.spec import ClassWeight
from automl_tl.training.metrics import Kind

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (N, K), labels (N,) int64 or (N, K) float) -> mean loss, a scalar."""


def task_loss(
    kind: Kind, labels: np.ndarray, n_outputs: int, *, label_smoothing: float, class_weight: ClassWeight, device: str
) -> Loss:
    """Softmax cross-entropy, or one sigmoid a class for several labels a sample.

    `balanced` weighs a class by N / (K n_k), as scikit-learn does; for several labels a sample it weighs the positives
    of each class by its negatives over its positives.
    """
    if kind == "multilabel":
        positives = torch.from_numpy(labels.sum(0)).float()
        negatives = len(labels) - positives
        weight = negatives.clamp(min=1) / positives.clamp(min=1) if class_weight == "balanced" else None
        weight = None if weight is None else weight.to(device)

        def multilabel(logits: Tensor, target: Tensor) -> Tensor:
            smooth = target * (1 - label_smoothing) + label_smoothing / 2
            return functional.binary_cross_entropy_with_logits(logits, smooth, pos_weight=weight)

        return multilabel

    if class_weight == "none":
        return nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    sizes = np.bincount(labels, minlength=n_outputs).clip(min=1)
    balance = torch.from_numpy(len(labels) / (n_outputs * sizes)).float().to(device)

    def balanced(logits: Tensor, target: Tensor) -> Tensor:
        # Not torch's `weight`: that also weighs the smoothed share of every other class, and rare ones flood the rest.
        each = functional.cross_entropy(logits, target, label_smoothing=label_smoothing, reduction="none")
        return (balance[target] * each).mean()

    return balanced


def label_tensor(labels: np.ndarray, device: str) -> Tensor:
    """Labels as `task_loss` wants them: int64 classes or float indicators."""
    return torch.from_numpy(labels).to(device, torch.long if labels.ndim == 1 else torch.float32)


def probabilities(logits: Tensor, kind: Kind) -> Tensor:
    """(N, K) logits -> (N, K) probabilities."""
    return logits.sigmoid() if kind == "multilabel" else logits.softmax(1)


@dataclass(frozen=True, slots=True)
class StartingPoint:
    """L2-SP: the pull of fine-tuned weights towards where they started (Li, Grandvalet and Davoine, ICML 2018)."""

    parameters: Sequence[nn.Parameter]
    start: Sequence[Tensor]
    strength: float

    def add_gradient(self) -> None:
        """Add the gradient of strength / 2 times the squared distance from the start, of all that trains by now."""
        for parameter, start in zip(self.parameters, self.start, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=self.strength)


def starting_point(parameters: Sequence[nn.Parameter], strength: float) -> StartingPoint | None:
    """Remember where these parameters start; None when nothing pulls."""
    if not strength or not parameters:
        return None
    return StartingPoint(parameters, [p.detach().clone() for p in parameters], strength)
