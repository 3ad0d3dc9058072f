"""Labels as the linear algebra wants them: indicator columns, and how much each sample or label weighs.

Notation: N samples, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from automl_tl.metrics.scores import Kind

if TYPE_CHECKING:  # the module itself imports torch, which no probe needs
    from automl_tl.model.spec import ClassWeight

BETA = 0.999  # of effective numbers, as in training


def indicators(labels: np.ndarray, kind: Kind, n_outputs: int) -> np.ndarray:
    """One-hot classes, or the multi-hot labels themselves: (N, K) float64."""
    if kind == "multilabel":
        return labels.astype(np.float64)
    return np.asarray(np.eye(n_outputs)[labels])


def sample_weights(targets: np.ndarray, kind: Kind, class_weight: ClassWeight) -> np.ndarray:
    """Weight of each sample in a least-squares fit, of mean 1: (N,).

    `balanced` is N / (K n_k), `effective_number` has effective numbers for sizes, both as in training;
    `logit_adjusted` is about logits while training and weighs nothing here. Several labels a sample share one fit, so
    there all samples weigh the same and weights only act in `loss_weights`.
    """
    if kind == "multilabel" or class_weight in ("none", "logit_adjusted"):
        return np.ones(len(targets))
    weights = 1 / _counted(targets.sum(0).clip(min=1), class_weight)[targets.argmax(1)]
    return np.asarray(weights / weights.mean())


def loss_weights(targets: np.ndarray, kind: Kind, class_weight: ClassWeight) -> np.ndarray:
    """Weight of each term of the log loss: (N, 1), or (N, K) for several labels a sample, as in training."""
    if kind != "multilabel":
        return sample_weights(targets, kind, class_weight)[:, None]
    if class_weight in ("none", "logit_adjusted"):
        return np.ones_like(targets)
    positives = targets.sum(0).clip(min=1)
    negatives = (len(targets) - targets.sum(0)).clip(min=1)
    ratio = _counted(negatives, class_weight) / _counted(positives, class_weight)
    return np.where(targets > 0, ratio, 1.0)


def _counted(sizes: np.ndarray, class_weight: ClassWeight) -> np.ndarray:
    """How many samples a class counts as; the effective number saturates (Cui et al., CVPR 2019)."""
    return sizes if class_weight == "balanced" else (1 - BETA**sizes) / (1 - BETA)


def several_groups(groups: np.ndarray | None) -> np.ndarray | None:
    """The groups, (N,), or None where all samples are of one: nothing is kept apart then, as in `fold_numbers`.

    So it is where a holdout took one of two groups: what is learned from the other must still choose a strength.
    """
    return None if groups is None or (groups == groups[:1]).all() else groups


def members(groups: np.ndarray) -> list[np.ndarray]:
    """Indices of the samples of each group."""
    _, codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(sizes)[:-1])
