"""Confidence intervals of F1 by the stratified bootstrap, single and paired.

Classes keep their sizes, samples within a class are drawn with replacement (Efron and Tibshirani 1993). For one label a
sample a draw only depends on how often each (true, predicted) pair comes up, so thousands of draws are one multinomial
call and not thousands of passes over the predictions.
"""

from __future__ import annotations

import numpy as np

from automl_tl.metrics.scores import Counts, Kind, counts_of_indicators, f1

DRAWS = 2000
LEVEL = 0.95

Interval = tuple[float, float]


def f1_interval(
    labels: np.ndarray,
    predictions: np.ndarray,
    kind: Kind,
    n_classes: int,
    *,
    metric: str = "f1_macro",
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """The interval of a metric on one split that holds a share `level` of the draws."""
    if kind == "multilabel":
        draws = _multilabel_draws(labels, [predictions], metric, seed)[0]
    else:
        draws = _draws(labels, predictions[:, None], n_classes, metric, seed)[:, 0]
    return _percentiles(draws, level)


def difference_interval(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, kind: Kind, n_classes: int, *, seed: int = 0
) -> Interval:
    """The 95 % interval of macro-F1(first) - macro-F1(second), both on the same draws of the same samples."""
    if kind == "multilabel":
        one, two = _multilabel_draws(labels, [first, second], "f1_macro", seed)
        return _percentiles(one - two, LEVEL)
    draws = _draws(labels, np.stack([first, second], 1), n_classes, "f1_macro", seed)
    return _percentiles(draws[:, 0] - draws[:, 1], LEVEL)


def _draws(labels: np.ndarray, predictions: np.ndarray, n_classes: int, metric: str, seed: int) -> np.ndarray:
    """Metric of each of M predictions (N, M) on each draw: (DRAWS, M)."""
    generator = np.random.default_rng(seed)
    n_models = predictions.shape[1]
    tp, fp, fn = (np.zeros((n_models, DRAWS, n_classes), dtype=np.int64) for _ in range(3))
    for true in np.unique(labels):
        outcomes, sizes = np.unique(predictions[labels == true], axis=0, return_counts=True)
        times = generator.multinomial(sizes.sum(), sizes / sizes.sum(), size=DRAWS)  # (DRAWS, outcomes)
        for model in range(n_models):
            for column, said in enumerate(outcomes[:, model]):
                if said == true:
                    tp[model, :, true] += times[:, column]
                else:
                    fn[model, :, true] += times[:, column]
                    fp[model, :, said] += times[:, column]
    return f1(Counts(tp, fp, fn), metric).T


def _multilabel_draws(labels: np.ndarray, predictions: list[np.ndarray], metric: str, seed: int) -> list[np.ndarray]:
    """Metric of each prediction on each draw of samples; label sets are too many to stratify by."""
    generator = np.random.default_rng(seed)
    parts: list[list[Counts]] = [[] for _ in predictions]
    for _ in range(DRAWS):
        rows = generator.integers(0, len(labels), len(labels))
        for model, said in enumerate(predictions):
            parts[model].append(counts_of_indicators(labels[rows], said[rows]))
    return [
        f1(Counts(*(np.stack([getattr(c, name) for c in counts]) for name in ("tp", "fp", "fn"))), metric)
        for counts in parts
    ]


def _percentiles(draws: np.ndarray, level: float) -> Interval:
    tail = 50 * (1 - level)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)
