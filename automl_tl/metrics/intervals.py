"""Confidence intervals of F1 by the stratified bootstrap: of one model, of the difference of two, class by class.

Classes keep their sizes, samples within a class are drawn with replacement (Efron and Tibshirani 1993); samples of
several labels are drawn as they are, for label sets are too many to stratify by. What a draw is worth only depends on
how often each (label, predictions) comes up, so thousands of draws are one multinomial call for each class and one
product of sparse matrices, not thousands of passes over the predictions.

The intervals `eased` add one right and one wrong answer in all, spread evenly over the classes, before they draw (for
the plain bootstrap a class of one or two samples, or without an error, has no doubt at all), correct the bias of the
score, and are normal on the logit scale, as shares are (after Agresti and Coull 1998). `benchmarks/coverage.py` holds
how often each kind of interval holds the truth: percentiles and BCa fall short on few samples.
Notation: N samples, K classes, M models, B draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from automl_tl.metrics.scores import Counts, Kind, count, f1, f1_per_class

DRAWS = 2000
LEVEL = 0.95
PER_CHUNK = 20_000_000  # numbers held at once: draws times different samples, or times what they say

Interval = tuple[float, float]
Method = Literal["eased", "percentile", "bca"]
Statistic = Callable[[Counts], np.ndarray]
"""Of counts (..., M, K); one number (...) or one a class (..., K) for each draw."""


def f1_interval(
    labels: np.ndarray,
    predictions: np.ndarray,
    kind: Kind,
    n_classes: int,
    *,
    metric: str = "f1_macro",
    level: float = LEVEL,
    seed: int = 0,
    seed_sd: float = 0.0,
    method: Method = "eased",
) -> Interval:
    """The interval of a metric on one split; every interval holds the score itself.

    Args:
        labels: (N,) classes, or (N, K) indicators.
        predictions: the same form.
        kind: one label a sample or several.
        n_classes: K; classes that the split does not hold count, too.
        metric: one of `metrics.scores.f1`.
        level: share of such intervals that are to hold the truth.
        seed: of the draws.
        seed_sd: standard deviation of the score over refits with other seeds; its variance is added to that of the
            draws, so that the interval is of the recipe and not of this one model. Only with `eased`.
        method: `eased`; `percentile` of the plain draws; or `bca`, bias-corrected and accelerated (Efron 1987).
    """
    samples = _samples(labels, [predictions], kind, n_classes)
    score = float(f1(count(labels, predictions, kind, n_classes), metric))

    def statistic(counts: Counts) -> np.ndarray:
        return np.asarray(f1(counts, metric)[..., 0])

    if method == "eased":
        eased, bias, sd = _eased(samples, kind, statistic, seed)
        center = np.clip(score - bias, 0.5 / len(labels), 1 - 0.5 / len(labels))
        low, high = _logit_normal(center, np.hypot(sd, seed_sd) / (eased * (1 - eased)), level)
    else:
        draws = statistic(_drawn(samples, samples.sizes, DRAWS, seed))
        shares = _accelerated(samples, draws, statistic, level) if method == "bca" else _tails(level)
        low, high = np.quantile(draws, shares)
    return float(min(low, score)), float(max(high, score))


def difference_interval(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    kind: Kind,
    n_classes: int,
    *,
    metric: str = "f1_macro",
    level: float = LEVEL,
    seed: int = 0,
    seed_sd: float = 0.0,
    method: Method = "eased",
) -> Interval:
    """The interval of metric(first) - metric(second), both on the same draws of the same samples.

    `eased` adds half a sample in all that only the first gets right and half a one that only the second does (after
    Agresti and Min 2005): two models that agree on every sample of the split may still differ on others.

    Arguments as in `f1_interval`; `seed_sd` is that of the difference.
    """

    def statistic(counts: Counts) -> np.ndarray:
        scores = f1(counts, metric)
        return np.asarray(scores[..., 0] - scores[..., 1])

    samples = _samples(labels, [first, second], kind, n_classes)
    score = float(statistic(samples.counts(samples.sizes[None]))[0])
    if method == "eased":
        _, bias, sd = _eased(samples, kind, statistic, seed)
        low, high = _normal(score - bias, np.hypot(sd, seed_sd), level)
    else:
        draws = statistic(_drawn(samples, samples.sizes, DRAWS, seed))
        shares = _accelerated(samples, draws, statistic, level) if method == "bca" else _tails(level)
        low, high = np.quantile(draws, shares)
    return float(min(low, score)), float(max(high, score))


def class_difference_intervals(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    kind: Kind,
    n_classes: int,
    *,
    level: float = LEVEL,
    seed: int = 0,
    seed_sd: np.ndarray | float = 0.0,
) -> np.ndarray:
    """The `eased` interval of each class's F1(first) - F1(second): (K, 2), each alone at its level.

    A class that the split does not hold can be told nothing of: (-1, 1). `seed_sd`: of each class's difference, (K,).
    """

    def statistic(counts: Counts) -> np.ndarray:
        scores = f1_per_class(counts)
        return np.asarray(scores[..., 0, :] - scores[..., 1, :])

    samples = _samples(labels, [first, second], kind, n_classes)
    found = statistic(samples.counts(samples.sizes[None]))[0]
    _, bias, sd = _eased(samples, kind, statistic, seed)
    low, high = _normal(found - bias, np.hypot(sd, seed_sd), level)
    held = np.isin(np.arange(n_classes), labels) if labels.ndim == 1 else labels.any(0)
    low, high = np.where(held, np.minimum(low, found), -1), np.where(held, np.maximum(high, found), 1)
    return np.stack([low, high], 1)


def metric_draws(
    labels: np.ndarray,
    predictions: Sequence[np.ndarray],
    kind: Kind,
    n_classes: int,
    *,
    metric: str = "f1_macro",
    draws: int = DRAWS,
    seed: int = 0,
) -> np.ndarray:
    """The metric of each of M models on each plain draw, the same draws for all: (B, M)."""
    samples = _samples(labels, predictions, kind, n_classes)
    return np.asarray(f1(_drawn(samples, samples.sizes, draws, seed), metric))


@dataclass(frozen=True, slots=True)
class _Indicators:
    """A matrix (R, D) of zeros and ones, by where the ones are, row by row.

    A matrix of `scipy.sparse` would do; it takes longer to import than most intervals take, and every child would.
    """

    rows: np.ndarray  # of each one, ascending
    columns: np.ndarray
    shape: tuple[int, int]

    @classmethod
    def of(cls, indicators: np.ndarray) -> _Indicators:
        """From indicators (D, M, K): (M * K, D)."""
        flat = indicators.reshape(len(indicators), -1).T
        rows, columns = np.nonzero(flat)
        return cls(rows, columns, (flat.shape[0], flat.shape[1]))

    def times(self, matrix: np.ndarray) -> np.ndarray:
        """The product with a matrix (D, B): (R, B)."""
        product = np.zeros((self.shape[0], matrix.shape[1]))
        if len(self.rows):
            starts = np.flatnonzero(np.diff(self.rows, prepend=-1))
            product[self.rows[starts]] = np.add.reduceat(matrix[self.columns], starts, axis=0)
        return product

    def beside(self, other: _Indicators) -> _Indicators:
        """This matrix and one of as many rows to the right of it."""
        rows = np.concatenate([self.rows, other.rows])
        columns = np.concatenate([self.columns, other.columns + self.shape[1]])
        order = np.argsort(rows, kind="stable")
        return _Indicators(rows[order], columns[order], (self.shape[0], self.shape[1] + other.shape[1]))


@dataclass(frozen=True, slots=True)
class _Samples:
    """The different samples of a split, D of them; classes are drawn from apart."""

    labels: _Indicators  # (K, D)
    said: _Indicators  # (M * K, D)
    right: _Indicators  # (M * K, D)
    stratum: np.ndarray  # (D,)
    sizes: np.ndarray  # (D,) how often each comes up; 0 for those that only ease
    n_models: int
    n_classes: int

    def counts(self, times: np.ndarray) -> Counts:
        """Counts (B, M, K) of draws (B, D) that hold each sample so many times."""
        columns = np.ascontiguousarray(times.T)
        shape = (self.n_models, self.n_classes, len(times))
        tp, said = (matrix.times(columns).reshape(shape) for matrix in (self.right, self.said))
        parts = (tp, said - tp, self.labels.times(columns)[None] - tp)
        return Counts(*(part.transpose(2, 0, 1) for part in parts))

    def beside(self, others: _Samples) -> _Samples:
        """These samples and others in one."""
        return _Samples(
            labels=self.labels.beside(others.labels),
            said=self.said.beside(others.said),
            right=self.right.beside(others.right),
            stratum=np.concatenate([self.stratum, others.stratum]),
            sizes=np.concatenate([self.sizes, others.sizes]),
            n_models=self.n_models,
            n_classes=self.n_classes,
        )


def _samples(labels: np.ndarray, predictions: Sequence[np.ndarray], kind: Kind, n_classes: int) -> _Samples:
    """The different samples of a split and how often each comes up."""
    flat = np.concatenate([np.asarray(each).reshape(len(labels), -1) for each in (labels, *predictions)], axis=1)
    rows, sizes = np.unique(flat.astype(np.int32), axis=0, return_counts=True)
    if kind == "multilabel":
        indicators = rows.reshape(len(rows), -1, n_classes).astype(bool)
        return _of_indicators(indicators, np.zeros(len(rows), dtype=np.int64), sizes)
    return _of_indicators(rows[:, :, None] == np.arange(n_classes), rows[:, 0], sizes)


def _with_doubt(samples: _Samples, kind: Kind) -> tuple[_Samples, np.ndarray]:
    """The samples and those that ease, and the weight of each; what is added is spread evenly over the classes.

    Of one model: one sample in all that it gets right and one that it does not. Of two: half a sample that only the
    first gets right and half a one that only the second does. Who is wrong says the next class, or one label too many
    or too few.
    """
    n_models, n_classes = samples.n_models, samples.n_classes
    this, none = np.eye(n_classes, dtype=bool), np.zeros((n_classes, n_classes), dtype=bool)
    other = none if kind == "multilabel" else np.roll(this, 1, axis=1)
    rows: list[tuple[np.ndarray, ...]]
    rows = [(this, this), (this, other)] if n_models == 1 else [(this, this, other), (this, other, this)]
    shares = [1.0, 1.0] if n_models == 1 else [0.5, 0.5]
    if kind == "multilabel":
        rows += [(none, this)] if n_models == 1 else [(none, this, none), (none, none, this)]
        shares = [1.0, 0.5, 0.5] if n_models == 1 else [0.25] * 4
    further = np.concatenate([np.stack(row, axis=1) for row in rows])  # (D, 1 + M, K)
    classes = np.zeros(n_classes, dtype=np.int64) if kind == "multilabel" else np.arange(n_classes)
    ours = _of_indicators(further, np.tile(classes, len(rows)), np.zeros(len(further)))
    weights = np.concatenate([samples.sizes, np.repeat(shares, n_classes) / n_classes])
    return samples.beside(ours), weights


def _of_indicators(indicators: np.ndarray, stratum: np.ndarray, sizes: np.ndarray) -> _Samples:
    """From indicators (D, 1 + M, K), the labels first."""
    said, labels = indicators[:, 1:], indicators[:, :1]
    return _Samples(
        labels=_Indicators.of(labels),
        said=_Indicators.of(said),
        right=_Indicators.of(said & labels),
        stratum=stratum,
        sizes=sizes.astype(np.float64),
        n_models=said.shape[1],
        n_classes=said.shape[2],
    )


def _drawn(samples: _Samples, weights: np.ndarray, draws: int, seed: int) -> Counts:
    """Counts (B, M, K) of draws in which every class keeps its size, samples coming up in proportion to weights."""
    generator = np.random.default_rng(seed)
    at_once = max(1, PER_CHUNK // max(len(weights), len(samples.said.rows), len(samples.labels.rows)))
    parts = []
    for start in range(0, draws, at_once):
        times = np.zeros((min(at_once, draws - start), len(weights)))
        for stratum in np.unique(samples.stratum):
            members = np.flatnonzero(samples.stratum == stratum)
            members = members[np.argsort(-weights[members], kind="stable")]  # the frequent first: sooner drawn
            share, size = weights[members], int(samples.sizes[members].sum())
            times[:, members] = generator.multinomial(size, share / share.sum(), size=len(times))
        parts.append(samples.counts(times))
    return Counts(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("tp", "fp", "fn")))


def _eased(samples: _Samples, kind: Kind, statistic: Statistic, seed: int) -> tuple[Any, Any, Any]:
    """The statistic of eased samples, by how much that of a draw is off on average, and its standard deviation."""
    eased, weights = _with_doubt(samples, kind)
    expected = np.zeros_like(weights)
    for stratum in np.unique(eased.stratum):
        members = eased.stratum == stratum
        expected[members] = weights[members] * (eased.sizes[members].sum() / weights[members].sum())
    draws = statistic(_drawn(eased, weights, DRAWS, seed))
    found = statistic(eased.counts(expected[None]))[0]
    return found, draws.mean(0) - found, draws.std(0)


def _accelerated(samples: _Samples, draws: np.ndarray, statistic: Statistic, level: float) -> np.ndarray:
    """The shares of the draws that BCa cuts off at (Efron 1987; several strata: Davison and Hinkley 1997, 5.3.2)."""
    from scipy.special import ndtr, ndtri

    found = statistic(samples.counts(samples.sizes[None]))[0]
    below = ((draws < found).mean() + (draws <= found).mean()) / 2
    offset = ndtri(np.clip(below, 0.5 / len(draws), 1 - 0.5 / len(draws)))
    without = statistic(samples.counts(samples.sizes - np.eye(len(samples.sizes))))  # one such sample left out
    cubes = squares = 0.0
    for stratum in np.unique(samples.stratum):
        members = samples.stratum == stratum
        times, left = samples.sizes[members], without[members]
        slope = (times.sum() - 1) * (np.average(left, weights=times) - left) / times.sum()
        cubes, squares = cubes + float(times @ slope**3), squares + float(times @ slope**2)
    acceleration = cubes / (6 * squares**1.5) if squares else 0.0
    normal = offset + ndtri(_tails(level))
    return np.asarray(ndtr(offset + normal / (1 - acceleration * normal)))


def _tails(level: float) -> np.ndarray:
    return np.array([(1 - level) / 2, (1 + level) / 2])


def _normal(center: Any, sd: Any, level: float) -> tuple[Any, Any]:
    """The interval of a difference of two shares."""
    reach = _reach(level) * sd
    return np.clip(center - reach, -1, 1), np.clip(center + reach, -1, 1)


def _logit_normal(center: float, sd: float, level: float) -> np.ndarray:
    """The interval of a share, between 0 and 1 however wide; `sd` is that of its logit."""
    odds = np.log(center / (1 - center)) + np.array([-1, 1]) * _reach(level) * sd
    return np.asarray(1 / (1 + np.exp(-odds)))


def _reach(level: float) -> float:
    """How many standard deviations a normal interval reaches to either side."""
    return NormalDist().inv_cdf((1 + level) / 2)
