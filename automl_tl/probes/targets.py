"""Labels as the linear algebra wants them: indicator columns, and how much each sample or label weighs.

Notation: N samples, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from automl_tl.errors import DataError
from automl_tl.metrics.scores import Kind

if TYPE_CHECKING:  # the module itself imports torch, which no probe needs
    from automl_tl.model.spec import ClassWeight


def indicators(labels: np.ndarray, kind: Kind, n_outputs: int) -> np.ndarray:
    """One-hot classes, or the multi-hot labels themselves: (N, K) float64."""
    if kind == "multilabel":
        return labels.astype(np.float64)
    return np.asarray(np.eye(n_outputs)[labels])


def sample_weights(targets: np.ndarray, kind: Kind, class_weight: ClassWeight) -> np.ndarray:
    """Weight of each sample in a least-squares fit, of mean 1: (N,).

    `balanced` is N / (K n_k), as in training. Several labels a sample share one fit, so there all samples weigh the
    same and `balanced` only acts in `loss_weights`.
    """
    if kind == "multilabel" or class_weight == "none":
        return np.ones(len(targets))
    weights = 1 / targets.sum(0).clip(min=1)[targets.argmax(1)]
    return np.asarray(weights / weights.mean())


def loss_weights(targets: np.ndarray, kind: Kind, class_weight: ClassWeight) -> np.ndarray:
    """Weight of each term of the log loss: (N, 1), or (N, K) for several labels a sample, as in training."""
    if kind != "multilabel":
        return sample_weights(targets, kind, class_weight)[:, None]
    if class_weight == "none":
        return np.ones_like(targets)
    positives = targets.sum(0)
    ratio = (len(targets) - positives).clip(min=1) / positives.clip(min=1)
    return np.where(targets > 0, ratio, 1.0)


def members(groups: np.ndarray) -> list[np.ndarray]:
    """Indices of the samples of each group.

    Raises:
        DataError: all samples are of one group, so that none can be left out.
    """
    _, codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        raise DataError(f"the {len(groups)} samples form 1 group, at least 2 are needed to leave one out")
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(sizes)[:-1])
