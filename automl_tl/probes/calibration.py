"""From scores to probabilities: one temperature, and for several labels a sample one threshold a class.

Fitted to scores of left-out samples by their log loss (Guo et al., ICML 2017; Platt 1999), so that a probe's logits
are calibrated. Notation: N samples, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from automl_tl.metrics.scores import Kind
from automl_tl.probes.targets import loss_weights

if TYPE_CHECKING:
    from automl_tl.model.spec import ClassWeight

SLOPES = (1e-2, 1e4)  # least and most, for scores of unit spread; never negative, so that decisions stay
STEPS = 40
ENOUGH = 1e-7  # relative gain of a step below which the loss is as good as least
LEAST_CURVATURE = 1e-12


@dataclass(frozen=True, slots=True)
class Calibration:
    """logits = slope * scores + shift."""

    slope: float
    shift: np.ndarray  # (K,)

    def logits(self, scores: np.ndarray) -> np.ndarray:
        """Calibrated logits (N, K)."""
        return np.asarray(self.slope * scores + self.shift)


def probabilities(logits: np.ndarray, kind: Kind) -> np.ndarray:
    """Softmax over the classes, or one sigmoid a class: (N, K)."""
    if kind == "multilabel":
        return sigmoid(logits)
    likely = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(likely / likely.sum(1, keepdims=True))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-logits)) without overflow, in the precision of the logits."""
    return np.asarray(np.exp(-np.logaddexp(0, -logits)))


def calibrate(
    scores: np.ndarray,
    targets: np.ndarray,
    kind: Kind,
    *,
    class_weight: ClassWeight = "none",
    shift: np.ndarray | None = None,
) -> Calibration:
    """The slope, and for several labels a sample the shifts, of least log loss.

    One further sample that is of every class as often as that class comes up counts, too (after Platt 1999): scores
    that part the classes without an error still get a finite slope.

    Args:
        scores: (N, K), each row from a fit without that sample.
        targets: (N, K) indicators.
        kind: one label a sample or several.
        class_weight: for several labels, `balanced` weighs positives as training does, which moves the shifts.
        shift: (K,) added to the scaled scores of a softmax, 0 by default; fitted where there are several labels.
    """
    doubt = 1 / (len(scores) + 1)
    if kind == "multilabel":
        frequencies = (targets.sum(0) + 0.5) / (len(targets) + 1)  # a label that none carries gets a finite shift
        soft = (1 - doubt) * targets + doubt * frequencies
        return _thresholds(scores, soft, loss_weights(targets, kind, class_weight))
    shift = np.zeros(scores.shape[1]) if shift is None else shift
    soft = (1 - doubt) * targets + doubt * targets.mean(0)
    return Calibration(_temperature(scores, soft, shift), shift)


def _temperature(scores: np.ndarray, soft: np.ndarray, shift: np.ndarray) -> float:
    """The slope of a softmax: the loss is convex in it, so Newton's steps within a bracket find the minimum."""
    columns = np.ascontiguousarray(scores.T)  # (K, N): sums over few classes are fast along the first axis
    spread = _spread(columns - columns.mean(0))
    low, high = (bound / spread for bound in SLOPES)
    wanted = float((soft * scores).sum())
    slope = 1 / spread
    for _ in range(STEPS):
        logits = slope * columns + shift[:, None]
        logits -= logits.max(0)
        likely = np.exp(logits, out=logits)
        likely /= likely.sum(0)
        moment = likely * columns
        mean = moment.sum(0)
        gradient = float(mean.sum()) - wanted
        curvature = float((moment * columns).sum() - (mean**2).sum())
        low, high = (low, slope) if gradient > 0 else (slope, high)
        step = slope - gradient / curvature if curvature > 0 else low
        if not low < step < high:
            step = float(np.sqrt(low * high))
        if abs(step - slope) <= 1e-4 * slope:
            break
        slope = step
    return slope


def _thresholds(scores: np.ndarray, soft: np.ndarray, weights: np.ndarray) -> Calibration:
    """One slope for all classes, so that a rare one cannot turn it round, and a shift for each: Newton's steps.

    The Hessian is an arrow: shifts only meet the slope.
    """
    middle = scores.mean(0)
    spread = _spread(scores - middle)
    unit = (scores - middle) / spread
    share = np.average(soft, axis=0, weights=weights)
    slope, shift = 1.0, np.log(share) - np.log1p(-share)
    loss = _sigmoid_loss(slope * unit + shift, soft, weights)
    for _ in range(STEPS):
        likely = sigmoid(slope * unit + shift)
        slack, bend = weights * (likely - soft), weights * likely * (1 - likely)
        by_shift, own = slack.sum(0), bend.sum(0)
        crossed = (bend * unit).sum(0)
        curvature = (bend * unit**2).sum() - (crossed**2 / own).sum()
        step = ((slack * unit).sum() - (crossed * by_shift / own).sum()) / max(curvature, LEAST_CURVATURE)
        step = slope - float(np.clip(slope - step, *SLOPES))
        steps = (by_shift - crossed * step) / own
        for _ in range(STEPS):
            nearer = _sigmoid_loss((slope - step) * unit + shift - steps, soft, weights)
            if nearer <= loss:
                break
            step, steps = step / 2, steps / 2
        if nearer >= loss * (1 - ENOUGH):
            break
        slope, shift, loss = slope - step, shift - steps, nearer
    return Calibration(slope / spread, shift - slope / spread * middle)


def _sigmoid_loss(logits: np.ndarray, soft: np.ndarray, weights: np.ndarray) -> float:
    return float((weights * (np.logaddexp(0, logits) - soft * logits)).sum())


def _spread(deviations: np.ndarray) -> float:
    """Root mean square, 1 where all are 0."""
    return float(np.sqrt(np.mean(deviations**2))) or 1.0
