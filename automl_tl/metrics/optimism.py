"""The winner's curse: by how much the best of many noisy scores is expected to be above its own true score.

Scores of T trials are true scores plus noise; who picks the highest picks noise, too. The noise and how much of it the
trials share (they are scored on the same samples) come from the stratified bootstrap of their left-out predictions.
Where the scores differ by more than noise, less is picked: the true scores are set to the scores shrunk towards their
mean (empirical Bayes, Efron and Morris 1975), noise is added, and the mean noise of the winner is the optimism.

Scoring the winner of a draw on the rows that the draw left out would count the noise twice: these rows are those that
the draw did not favor, so what lifts the one score lowers the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from automl_tl.metrics.intervals import metric_draws
from automl_tl.metrics.scores import Kind, count, f1

DRAWS = 1000


def selection_optimism(
    labels: np.ndarray,
    predictions: Sequence[np.ndarray],
    kind: Kind,
    n_classes: int,
    *,
    metric: str = "f1_macro",
    seed: int = 0,
) -> float:
    """The expected optimism of the best score of T trials that were scored on the same samples; at least 0.

    Args:
        labels: (N,) classes, or (N, K) indicators.
        predictions: of each trial, in the form of the labels.
        kind: one label a sample or several.
        n_classes: K.
        metric: one of `metrics.scores.f1`.
        seed: of the bootstrap.
    """
    if len(predictions) < 2:
        return 0.0
    scores = np.array([float(f1(count(labels, said, kind, n_classes), metric)) for said in predictions])
    draws = metric_draws(labels, predictions, kind, n_classes, metric=metric, draws=DRAWS, seed=seed)
    return _winners_noise(scores, draws - draws.mean(0))


def optimism_of_scores(scores: Sequence[float], standard_error: float, *, shared: float = 0.0, seed: int = 0) -> float:
    """The same from T scores alone, each with the same standard error.

    Args:
        scores: of the trials.
        standard_error: of one of them.
        shared: correlation of the noise of two trials, from 0 (other samples) towards 1 (the same errors).
        seed: of the simulated noise.
    """
    if len(scores) < 2:
        return 0.0
    own = standard_error * np.sqrt(1 - shared)  # what all share does not choose among them
    noise = np.random.default_rng(seed).normal(scale=own, size=(DRAWS, len(scores)))
    return _winners_noise(np.array(scores), noise)


def _winners_noise(scores: np.ndarray, noise: np.ndarray) -> float:
    """Mean noise of the winner, from scores (T,) and draws of their noise (B, T)."""
    apart = noise - noise.mean(1, keepdims=True)
    variance = float(apart.var(0).mean())
    spread = float(scores.var(ddof=1))
    true_share = max(0.0, 1 - variance / spread) if spread > 0 else 0.0
    shrunk = scores.mean() + true_share * (scores - scores.mean())
    winners = (shrunk + noise).argmax(1)
    return max(0.0, float(apart[np.arange(len(noise)), winners].mean()))
