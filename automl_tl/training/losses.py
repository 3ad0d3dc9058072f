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


BETA = 0.999  # of effective numbers: a class of 1 / (1 - BETA) samples begins to repeat itself


def task_loss(
    kind: Kind, labels: np.ndarray, n_outputs: int, *, label_smoothing: float, class_weight: ClassWeight, device: str
) -> Loss:
    """Softmax cross-entropy, or one sigmoid a class for several labels a sample."""
    weights = class_weights(kind, labels, n_outputs, class_weight).to(device)
    offsets = logit_offsets(kind, labels, n_outputs, class_weight).to(device)

    def multilabel(logits: Tensor, target: Tensor) -> Tensor:
        smooth = target * (1 - label_smoothing) + label_smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits + offsets, smooth, pos_weight=weights)

    def weighted(logits: Tensor, target: Tensor) -> Tensor:
        # Not torch's `weight`: that also weighs the smoothed share of every other class, and rare ones flood the rest.
        each = functional.cross_entropy(logits, target, label_smoothing=label_smoothing, reduction="none")
        return (weights[target] * each).mean()

    def adjusted(logits: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(logits + offsets, target, label_smoothing=label_smoothing)

    if kind == "multilabel":
        return multilabel
    return weighted if class_weight in ("balanced", "effective_number") else adjusted


def task_losses(
    kind: Kind, labels: np.ndarray, n_outputs: int, settings: Sequence[Regularization], device: str
) -> Loss:
    """The `task_loss` of M models at once, each with its own smoothing and weights: logits (M, N, K) -> losses (M,)."""
    smoothing = torch.tensor([each.label_smoothing for each in settings], device=device).view(-1, 1, 1)
    ways = [each.class_weight for each in settings]
    weights = torch.stack([class_weights(kind, labels, n_outputs, way) for way in ways]).to(device)  # (M, K)
    offsets = torch.stack([logit_offsets(kind, labels, n_outputs, way) for way in ways]).to(device).unsqueeze(1)

    def multilabel(logits: Tensor, target: Tensor) -> Tensor:
        smooth = target * (1 - smoothing) + smoothing / 2
        each = functional.binary_cross_entropy_with_logits(
            logits + offsets, smooth, pos_weight=weights.unsqueeze(1), reduction="none"
        )
        return each.mean((1, 2))

    def multiclass(logits: Tensor, target: Tensor) -> Tensor:
        logs = (logits + offsets).log_softmax(2)
        own = logs.gather(2, target.view(1, -1, 1).expand(len(logits), -1, 1))
        each = (1 - smoothing) * own + smoothing * logs.mean(2, keepdim=True)
        return -(weights[:, target] * each.squeeze(2)).mean(1)

    return multilabel if kind == "multilabel" else multiclass


def class_weights(kind: Kind, labels: np.ndarray, n_outputs: int, class_weight: ClassWeight) -> Tensor:
    """What a sample of each class weighs in the loss, (K,) float32; of mean one over the samples.

    `balanced`: N / (K n_k), as scikit-learn has it. `effective_number`: one over (1 - BETA^n_k) / (1 - BETA), the
    number of samples that do not repeat others (Cui et al., "Class-Balanced Loss", CVPR 2019).

    Of several labels a sample it is what the positives of each class weigh, its negatives weighing one: by `balanced`
    its negatives over its positives, by `effective_number` the effective number of the ones over that of the others.
    """
    if class_weight not in ("balanced", "effective_number"):
        return torch.ones(n_outputs)
    number = _effective if class_weight == "effective_number" else np.float64
    if kind == "multilabel":
        positives = labels.sum(0)
        ratio = number((len(labels) - positives).clip(min=1)) / number(positives.clip(min=1))
        return torch.from_numpy(np.asarray(ratio)).float()
    sizes = np.bincount(labels, minlength=n_outputs)
    weights = 1 / number(sizes.clip(min=1))
    return torch.from_numpy(weights / (sizes @ weights / len(labels))).float()


def logit_offsets(kind: Kind, labels: np.ndarray, n_outputs: int, class_weight: ClassWeight) -> Tensor:
    """What is added to the logits in the loss and nowhere else, (K,) float32; all zeros but for `logit_adjusted`.

    The logarithms of the classes' shares, so that the logits themselves come to decide by likelihood alone (Menon et
    al., "Long-tail learning via logit adjustment", ICLR 2021, with tau 1). Of several labels a sample it is the log
    odds of each.
    """
    if class_weight != "logit_adjusted":
        return torch.zeros(n_outputs)
    if kind == "multilabel":
        positives = labels.sum(0)
        odds = positives.clip(min=1) / (len(labels) - positives).clip(min=1)
        return torch.from_numpy(np.log(odds)).float()
    shares = np.bincount(labels, minlength=n_outputs).clip(min=1) / len(labels)
    return torch.from_numpy(np.log(shares)).float()


def _effective(sizes: np.ndarray) -> np.ndarray:
    return np.asarray(1 - BETA ** np.asarray(sizes, dtype=np.float64)) / (1 - BETA)


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
