"""What is done to probabilities before they decide: one temperature, and a bias a class where that pays in the metric.

Everything is tuned on out-of-fold probabilities. The temperature is that of least log loss (Guo et al., ICML 2017). The
bias is either -tau * log(prior) with one tau (Menon et al., ICLR 2021), or, where every class has enough samples, one
number a class by coordinate ascent; several labels a sample have one bias a label, which is its threshold. Whether a
bias is used is decided on samples that did not tune it. Notation: N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from automl_tl.metrics.intervals import metric_draws
from automl_tl.metrics.scores import Counts, Kind, decide, f1, validation_score
from automl_tl.model.ensemble import Adjustment

TEMPERATURES = (0.05, 20.0)
TAUS = np.linspace(0, 1.5, 16)
SHIFTS = np.linspace(-2, 2, 41)
SWEEPS = 3
MOST_VALUES = 500_000  # N K from which on a part of the samples tunes the biases of classes
ENOUGH = 50  # samples of a class from which its own bias can be told
FOLDS = 5
DRAWS = 500
LEAST_LIKELY = 1e-7

Tune = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(labels, logits) -> (K,) biases"""


def fit_adjustment(
    labels: np.ndarray, probabilities: np.ndarray, kind: Kind, *, metric: str = "f1_macro", seed: int = 0
) -> tuple[Adjustment, float]:
    """The temperature; the prior correction if it gains; biases of the classes if they gain one standard error more.

    Args:
        labels: (N,) classes, or (N, K) indicators.
        probabilities: (N, K), each row from a fit without that sample.
        kind: one label a sample or several.
        metric: one of `metrics.scores.f1`, that the bias is to raise.
        seed: of the folds and the bootstrap.

    Returns:
        The adjustment, and what the metric gains by its bias on samples that did not tune it.
    """
    temperature = fit_temperature(labels, probabilities, kind)
    logits = _logits(probabilities, kind) / temperature
    bias, most = np.zeros(probabilities.shape[1]), 0.0
    for index, tune in enumerate(_tuners(labels, kind, metric, probabilities.shape[1])):
        gain, error = _cross_fitted_gain(labels, logits, kind, metric, tune, seed)
        needed = most + (error if index else 0.0)  # one number fits little noise, one a class fits some
        if gain > needed:
            bias, most = tune(labels, logits), gain
    return Adjustment(temperature=temperature, bias=tuple(bias.tolist())), most


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray, kind: Kind) -> float:
    """The temperature of least log loss, with one further sample of doubt (Platt 1999)."""
    from scipy.optimize import minimize_scalar

    logits = _logits(probabilities, kind)
    targets = labels if labels.ndim == 2 else np.eye(probabilities.shape[1])[labels]
    doubt = 1 / (len(targets) + 1)
    soft = (1 - doubt) * targets + doubt * targets.mean(0)

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        if kind == "multilabel":
            return float((np.logaddexp(0, scaled) - soft * scaled).mean())
        scaled -= scaled.max(1, keepdims=True)
        return float((np.log(np.exp(scaled).sum(1)) - (soft * scaled).sum(1)).mean())

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(found.x))


def calibrated(labels: np.ndarray, probabilities: np.ndarray, kind: Kind) -> np.ndarray:
    """The probabilities (N, K) at the temperature of least log loss."""
    return Adjustment(temperature=fit_temperature(labels, probabilities, kind)).apply(probabilities, kind)


def log_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Negative log likelihood of each sample, the mean over labels where it has several: (N,)."""
    likely = probabilities.astype(np.float64).clip(LEAST_LIKELY, 1 - LEAST_LIKELY)
    if labels.ndim == 2:
        return np.asarray(-(labels * np.log(likely) + (1 - labels) * np.log(1 - likely)).mean(1))
    return np.asarray(-np.log(likely[np.arange(len(labels)), labels]))


def prior_correction(labels: np.ndarray, logits: np.ndarray, kind: Kind, metric: str) -> np.ndarray:
    """-tau * log(prior), or of several labels a sample -tau * logit(prior), of the best tau in [0, 1.5]: (K,)."""
    counts = labels.sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=logits.shape[1])
    prior = (counts + 0.5) / (len(labels) + 1)
    odds = np.log(prior / (1 - prior)) if kind == "multilabel" else np.log(prior)
    biases = [-tau * odds for tau in TAUS]
    scores = [validation_score(labels, _probabilities(logits + bias, kind), kind, metric) for bias in biases]
    return np.asarray(biases[int(np.argmax(scores))])


def class_biases(labels: np.ndarray, logits: np.ndarray, metric: str) -> np.ndarray:
    """One number a class by coordinate ascent from 0, their mean 0: (K,)."""
    n_classes = logits.shape[1]
    if labels.size * n_classes > MOST_VALUES:  # with many classes it would take minutes
        some = np.random.default_rng(0).permutation(len(labels))[: MOST_VALUES // n_classes]
        labels, logits = labels[some], logits[some]
    bias = np.zeros(n_classes)
    true = np.eye(n_classes, dtype=np.int64)[labels]
    for _ in range(SWEEPS):
        before = bias.copy()
        for k in range(n_classes):
            shifted = logits + bias
            others = shifted.copy()
            others[:, k] = -np.inf
            instead = others.argmax(1)
            margin = others.max(1) - logits[:, k]  # the bias from which the sample is said to be of class k
            shifts = np.append(SHIFTS, bias[k])
            taken = margin < shifts[:, None]  # (shifts, N)
            hit = (~taken).astype(np.float64)
            others_said = np.eye(n_classes)[instead]
            said, right = hit @ others_said, hit @ (others_said * true)
            said[:, k], right[:, k] = taken.sum(1), taken @ true[:, k]
            scores = f1(Counts(right, said - right, true.sum(0) - right), metric)
            best = scores >= scores.max() - 1e-12
            bias[k] = min(shifts[best], key=abs)  # of equally good ones the least
        bias -= bias.mean()
        if np.allclose(bias, before):
            break
    return bias


def label_biases(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The bias of each label that raises its own F1 most, of equally good ones the least; rare labels get 0: (K,)."""
    held = labels.astype(bool)
    said = logits[None] + SHIFTS[:, None, None] >= 0  # (shifts, N, K)
    right = (said & held).sum(1)
    scores = 2 * right / np.maximum(said.sum(1) + held.sum(0), 1)
    distance = np.abs(SHIFTS)[:, None]
    chosen = np.where(scores >= scores.max(0) - 1e-12, distance, np.inf).argmin(0)
    return np.asarray(np.where(held.sum(0) >= ENOUGH, SHIFTS[chosen], 0.0))


def _tuners(labels: np.ndarray, kind: Kind, metric: str, n_classes: int) -> list[Tune]:
    """What may be tuned with so many samples, the prior correction first."""
    tuners: list[Tune] = [lambda some, logits: prior_correction(some, logits, kind, metric)]
    if kind == "multilabel":
        if labels.sum(0).max() >= ENOUGH:
            tuners.append(label_biases)
    elif np.bincount(labels, minlength=n_classes).min() >= ENOUGH:
        tuners.append(lambda some, logits: class_biases(some, logits, metric))
    return tuners


def _cross_fitted_gain(
    labels: np.ndarray, logits: np.ndarray, kind: Kind, metric: str, tune: Tune, seed: int
) -> tuple[float, float]:
    """What the metric gains on samples left out of the tuning, and the standard error of that."""
    shifted = logits.copy()
    for fold in fold_rows(labels, FOLDS, seed):
        rest = np.setdiff1d(np.arange(len(labels)), fold)
        shifted[fold] += tune(labels[rest], logits[rest])
    said = [decide(_probabilities(each, kind), kind) for each in (logits, shifted)]
    if np.array_equal(said[0], said[1]):
        return 0.0, 0.0
    before, after = (validation_score(labels, _probabilities(each, kind), kind, metric) for each in (logits, shifted))
    draws = metric_draws(labels, said, kind, logits.shape[1], metric=metric, draws=DRAWS, seed=seed)
    return after - before, float((draws[:, 1] - draws[:, 0]).std(ddof=1))


def fold_rows(labels: np.ndarray, n_folds: int, seed: int) -> list[np.ndarray]:
    """Rows of each fold, classes spread evenly over the folds; at random for several labels a sample."""
    order = np.random.default_rng(seed).permutation(len(labels))
    if labels.ndim == 1:
        order = order[np.argsort(labels[order], kind="stable")]
    return [np.sort(order[start::n_folds]) for start in range(min(n_folds, len(labels)))]


def _logits(probabilities: np.ndarray, kind: Kind) -> np.ndarray:
    likely = probabilities.astype(np.float64).clip(LEAST_LIKELY, 1 - LEAST_LIKELY)
    return np.asarray(np.log(likely) - np.log1p(-likely) if kind == "multilabel" else np.log(likely))


def _probabilities(logits: np.ndarray, kind: Kind) -> np.ndarray:
    if kind == "multilabel":
        return np.asarray(1 / (1 + np.exp(-logits)))
    likely = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(likely / likely.sum(1, keepdims=True))
