"""What a trial minimizes: cross-entropy of the task, and the pull towards transferred weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from automl_tl.metrics.scores import Kind
from automl_tl.model.spec import ClassWeight, Regularization

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (N, K), labels (N,) int64 or (N, K) float) -> mean loss, a scalar."""


def task_loss(
    kind: Kind, labels: np.ndarray, n_outputs: int, *, label_smoothing: float, class_weight: ClassWeight, device: str
) -> Loss:
    """Softmax cross-entropy, or one sigmoid a class for several labels a sample."""
    if kind == "multilabel":
        weight = class_weights(kind, labels, n_outputs).to(device) if class_weight == "balanced" else None

        def multilabel(logits: Tensor, target: Tensor) -> Tensor:
            smooth = target * (1 - label_smoothing) + label_smoothing / 2
            return functional.binary_cross_entropy_with_logits(logits, smooth, pos_weight=weight)

        return multilabel

    if class_weight == "none":
        return nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    balance = class_weights(kind, labels, n_outputs).to(device)

    def balanced(logits: Tensor, target: Tensor) -> Tensor:
        # Not torch's `weight`: that also weighs the smoothed share of every other class, and rare ones flood the rest.
        each = functional.cross_entropy(logits, target, label_smoothing=label_smoothing, reduction="none")
        return (balance[target] * each).mean()

    return balanced


def task_losses(
    kind: Kind, labels: np.ndarray, n_outputs: int, settings: Sequence[Regularization], device: str
) -> Loss:
    """The `task_loss` of M models at once, each with its own smoothing and weights: logits (M, N, K) -> losses (M,)."""
    smoothing = torch.tensor([each.label_smoothing for each in settings], device=device).view(-1, 1, 1)
    balanced = torch.tensor([[each.class_weight == "balanced"] for each in settings])
    weights = torch.where(balanced, class_weights(kind, labels, n_outputs), 1.0).to(device)  # (M, K)

    def multilabel(logits: Tensor, target: Tensor) -> Tensor:
        smooth = target * (1 - smoothing) + smoothing / 2
        each = functional.binary_cross_entropy_with_logits(
            logits, smooth, pos_weight=weights.unsqueeze(1), reduction="none"
        )
        return each.mean((1, 2))

    def multiclass(logits: Tensor, target: Tensor) -> Tensor:
        logs = logits.log_softmax(2)
        own = logs.gather(2, target.view(1, -1, 1).expand(len(logits), -1, 1))
        each = (1 - smoothing) * own + smoothing * logs.mean(2, keepdim=True)
        return -(weights[:, target] * each.squeeze(2)).mean(1)

    return multilabel if kind == "multilabel" else multiclass


def class_weights(kind: Kind, labels: np.ndarray, n_outputs: int) -> Tensor:
    """Weights (K,) that let rare classes count as much as others, float32.

    N / (K n_k), as scikit-learn has it; of several labels a sample, what the positives of each class weigh: its
    negatives over its positives.
    """
    if kind == "multilabel":
        positives = torch.from_numpy(labels.sum(0)).float()
        return (len(labels) - positives).clamp(min=1) / positives.clamp(min=1)
    sizes = np.bincount(labels, minlength=n_outputs).clip(min=1)
    return torch.from_numpy(len(labels) / (n_outputs * sizes)).float()


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
