"""F1 and its kin from counts. Agrees with scikit-learn for every input (see the property tests).

All classes of the task count, also those that a split happens not to hold: an F1 over fewer classes would not compare.
Notation: K classes, N samples; leading axes `...` are free, so that a bootstrap can score thousands of draws at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Kind = Literal["binary", "multiclass", "multilabel"]


@dataclass(frozen=True, slots=True)
class Counts:
    """True positives, false positives and false negatives of each class, each of shape (..., K)."""

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, n_classes: int) -> np.ndarray:
    """Rows are true classes, columns predicted ones: (K, K) int64."""
    flat: np.ndarray = np.bincount(labels * n_classes + predictions, minlength=n_classes * n_classes)
    return flat.reshape(n_classes, n_classes)


def counts_of_confusion(confusion: np.ndarray) -> Counts:
    """Counts from confusion matrices (..., K, K)."""
    tp = np.diagonal(confusion, axis1=-2, axis2=-1)
    return Counts(tp, confusion.sum(-2) - tp, confusion.sum(-1) - tp)


def counts_of_indicators(labels: np.ndarray, predictions: np.ndarray) -> Counts:
    """Counts from multi-hot labels and predictions (N, K)."""
    true, said = labels.astype(bool), predictions.astype(bool)
    return Counts((true & said).sum(0), (~true & said).sum(0), (true & ~said).sum(0))


def f1_per_class(counts: Counts) -> np.ndarray:
    """2 tp / (2 tp + fp + fn), 0 where that is 0 / 0: (..., K)."""
    return _ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn)


def f1(counts: Counts, average: str) -> np.ndarray:
    """F1 averaged as `f1_macro`, `f1_micro`, `f1_weighted` or `f1_binary` (of the second class): (...)."""
    if average == "f1_macro":
        return np.asarray(f1_per_class(counts).mean(-1))
    if average == "f1_binary":
        return f1_per_class(counts)[..., 1]
    if average == "f1_weighted":
        support = counts.tp + counts.fn
        return _ratio((f1_per_class(counts) * support).sum(-1), support.sum(-1))
    total = Counts(*(part.sum(-1) for part in (counts.tp, counts.fp, counts.fn)))
    return f1_per_class(total)


def decide(probabilities: np.ndarray, kind: Kind) -> np.ndarray:
    """Predictions from probabilities (N, K): class indices (N,), or indicators (N, K) for several labels a sample."""
    if kind == "multilabel":
        return (probabilities >= 0.5).astype(np.int64)
    return np.asarray(probabilities.argmax(1))


def count(labels: np.ndarray, predictions: np.ndarray, kind: Kind, n_classes: int) -> Counts:
    """Counts of predictions against labels of either form."""
    if kind == "multilabel":
        return counts_of_indicators(labels, predictions)
    return counts_of_confusion(confusion_matrix(labels, predictions, n_classes))


def validation_score(labels: np.ndarray, probabilities: np.ndarray, kind: Kind, metric: str) -> float:
    """The number that a search maximizes."""
    return float(f1(count(labels, decide(probabilities, kind), kind, probabilities.shape[1]), metric))


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean negative log likelihood; finer than F1, so it tells trials apart that a small split scores alike."""
    likely = probabilities.astype(np.float64).clip(1e-7, 1 - 1e-7)
    if labels.ndim == 2:
        return float(-(labels * np.log(likely) + (1 - labels) * np.log(1 - likely)).mean())
    return float(-np.log(likely[np.arange(len(labels)), labels]).mean())


def report(labels: np.ndarray, predictions: np.ndarray, kind: Kind, classes: tuple[str, ...]) -> dict[str, Any]:
    """All metrics of a split as JSON-ready data; `confusion` is null for several labels a sample."""
    counts = count(labels, predictions, kind, len(classes))
    precision = _ratio(counts.tp, counts.tp + counts.fp)
    recall = _ratio(counts.tp, counts.tp + counts.fn)
    per_class = f1_per_class(counts)
    right = (labels == predictions) if labels.ndim == 1 else (labels == predictions).all(1)
    confusion = None if kind == "multilabel" else confusion_matrix(labels, predictions, len(classes)).tolist()
    return {
        "f1_macro": float(f1(counts, "f1_macro")),
        "f1_micro": float(f1(counts, "f1_micro")),
        "f1_weighted": float(f1(counts, "f1_weighted")),
        "accuracy": float(right.mean()),
        "precision_macro": float(precision.mean()),
        "recall_macro": float(recall.mean()),
        "per_class": [
            {
                "class": name,
                "f1": float(per_class[k]),
                "precision": float(precision[k]),
                "recall": float(recall[k]),
                "support": int(counts.tp[k] + counts.fn[k]),
            }
            for k, name in enumerate(classes)
        ],
        "confusion": confusion,
    }


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, 0 where the denominator is."""
    result = np.zeros(np.shape(numerator))
    np.divide(numerator, denominator, out=result, where=np.asarray(denominator) != 0)
    return result
