"""Nearest class mean: the classifier for classes of a few samples (Mensink et al. 2013; Snell et al., NeurIPS 2017).

Squared distances to the means differ by a linear function of the sample, so the probe is a linear map: for each class
2 m_c x - |m_c|^2; for several labels a sample, that of a label's positives less that of its negatives. A sample is
n / (n - 1) times as far from the mean of its class of n when it has left it, so that leaving out is exact and free.
Notation: N samples, d features, K classes, C sets of samples that have a mean each: K, or 2 K for several labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from automl_tl.metrics.scores import Kind, log_loss, validation_score
from automl_tl.probes.calibration import calibrate, probabilities
from automl_tl.probes.centering import Centered, Features, center
from automl_tl.probes.fit import PathPoint, ProbeFit
from automl_tl.probes.targets import indicators, members, several_groups

if TYPE_CHECKING:
    from automl_tl.model.spec import ClassWeight

APART = 1.0  # squared distance, in mean squared norms, by which a set without samples lies farther than all others


def fit_prototypes(
    features: Features,
    labels: np.ndarray,
    kind: Kind,
    n_outputs: int,
    *,
    metric: str = "f1_macro",
    class_weight: ClassWeight = "none",
    groups: np.ndarray | None = None,
) -> ProbeFit:
    """The classifier by the nearest class mean, every class as wide as the others.

    Args:
        features: (N, d) floats.
        labels: (N,) int64 classes, or (N, K) 0/1 for several labels a sample.
        kind: one label a sample or several.
        n_outputs: K.
        metric: what `score` is; see `metrics.scores.f1`.
        class_weight: `none` adds the logarithm of how frequent a class is, `balanced` does not.
        groups: (N,) integers; samples of one group are left out together, but for a single group of all.

    Raises:
        DataError: fewer than two samples, or features that are not finite.
    """
    targets = indicators(labels, kind, n_outputs)
    sets = np.hstack([targets, 1 - targets]) if kind == "multilabel" else targets
    centered = center(features)
    means = centered.adjoint(sets).T / sets.sum(0).clip(min=1)[:, None]
    nearness = _nearness(centered, means)
    nearness[:, sets.sum(0) == 0] = -np.inf
    together = several_groups(groups)
    if together is None:
        left_out = _without_each(centered, nearness, sets)
    else:
        left_out = _without_groups(centered, nearness, sets, means, members(together))
    shift = np.zeros(n_outputs) if class_weight == "balanced" else np.log(targets.mean(0).clip(min=1 / len(targets)))
    scores = _scores(left_out, kind)
    calibration = calibrate(scores, targets, kind, class_weight=class_weight, shift=shift)
    said = probabilities(calibration.logits(scores), kind)
    weight, bias = _linear_map(means, nearness, sets, kind)
    weight = weight / centered.scale
    score, loss = validation_score(labels, said, kind, metric), log_loss(labels, said)
    return ProbeFit(
        weight=(calibration.slope * weight).astype(np.float32),
        bias=calibration.logits(bias - centered.mean @ weight).astype(np.float32),
        strength=0.0,
        out_of_fold=said,
        score=score,
        log_loss=loss,
        path=(PathPoint(0.0, score, loss),),
    )


def _nearness(centered: Centered, means: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Squared norms of the samples less their squared distances to the means: (N, C), linear in the sample."""
    return np.asarray(2 * centered.times(means.T, rows) - np.square(means).sum(1))


def _without_each(centered: Centered, nearness: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """Nearness of each sample to the means of all others; -inf where there is no other."""
    norms, sizes = centered.squared_norms()[:, None], sets.sum(0)
    farther = np.square(sizes.clip(min=1) / (sizes - 1).clip(min=1))
    own = np.where(sizes > 1, norms - farther * (norms - nearness), -np.inf)
    return np.where(sets > 0, own, nearness)


def _without_groups(
    centered: Centered, nearness: np.ndarray, sets: np.ndarray, means: np.ndarray, groups: list[np.ndarray]
) -> np.ndarray:
    """Nearness of each sample to the means of all other groups; -inf where there is no other."""
    left_out, sizes = nearness.copy(), sets.sum(0)
    for rows in groups:
        touched = np.flatnonzero(sets[rows].any(0))
        own = sets[np.ix_(rows, touched)]
        rest = sizes[touched] - own.sum(0)
        sums = sizes[touched, None] * means[touched] - centered.adjoint(own, rows).T
        others = _nearness(centered, sums / rest.clip(min=1)[:, None], rows)
        left_out[np.ix_(rows, touched)] = np.where(rest > 0, others, -np.inf)
    return left_out


def _scores(nearness: np.ndarray, kind: Kind) -> np.ndarray:
    """Scores (N, K) from nearness to C means; a mean that is missing counts as farther than all others."""
    if kind == "multilabel":
        positive, negative = np.hsplit(nearness, 2)
        both = np.isfinite(positive) & np.isfinite(negative)
        difference = np.subtract(positive, negative, where=both, out=np.zeros_like(positive))
        return np.where(both, difference, np.where(np.isfinite(positive), APART, -APART))
    present = np.isfinite(nearness)
    farthest = np.where(present, nearness, np.inf).min(1, keepdims=True)
    return np.where(present, nearness, farthest - APART)


def _linear_map(means: np.ndarray, nearness: np.ndarray, sets: np.ndarray, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """Weight (d, K) and bias (K,) that give the scores of centered samples."""
    weight, bias = 2 * means.T, -np.square(means).sum(1)
    present = sets.any(0)
    if kind != "multilabel":
        return weight, np.where(present, bias, nearness[:, present].min() - APART)
    both = present.reshape(2, -1).all(0)
    weight, bias = np.subtract(*np.hsplit(weight, 2)), np.subtract(*np.hsplit(bias, 2))
    return weight * both, np.where(both, bias, np.where(np.hsplit(present, 2)[0], APART, -APART))
