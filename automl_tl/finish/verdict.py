"""Whether transfer helped: the transferred model beside the best that does without, overall and for each class.

Both are asked for the same test samples, so the intervals are of paired differences. Overall the verdict is at 95 %;
those of the classes are at 95 % for all of them together (Bonferroni), else one class in twenty would be flagged of
two equal models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from automl_tl.metrics.intervals import (
    LEVEL,
    Interval,
    class_difference_intervals,
    difference_interval,
)
from automl_tl.metrics.scores import Kind, count, f1, f1_per_class

Judgement = Literal["positive", "inconclusive", "negative transfer"]


@dataclass(frozen=True, kw_only=True)
class ClassGain:
    """F1 of one class: transferred - rival."""

    name: str
    gain: float
    interval: Interval
    verdict: Judgement


@dataclass(frozen=True, kw_only=True)
class TransferVerdict:
    """The metric: transferred - rival, the baseline of the highest test score."""

    rival: str
    gain: float
    interval: Interval
    verdict: Judgement
    per_class: tuple[ClassGain, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        values = asdict(self)
        values["interval"] = list(self.interval)
        values["per_class"] = [{**asdict(each), "interval": list(each.interval)} for each in self.per_class]
        return values

    def harmed(self) -> tuple[str, ...]:
        """Names of the classes that transfer made worse, also where it helped overall."""
        return tuple(each.name for each in self.per_class if each.verdict == "negative transfer")


def judge(interval: Interval) -> Judgement:
    """Positive above 0, negative transfer below, inconclusive where the interval holds 0."""
    low, high = interval
    if low > 0:
        return "positive"
    return "negative transfer" if high < 0 else "inconclusive"


def transfer_verdict(
    labels: np.ndarray,
    transferred: np.ndarray,
    baselines: Mapping[str, np.ndarray],
    kind: Kind,
    classes: tuple[str, ...],
    *,
    metric: str = "f1_macro",
    seed: int = 0,
    seed_sd: float = 0.0,
    class_seed_sd: np.ndarray | float = 0.0,
) -> TransferVerdict:
    """Compare with the baseline that scores highest on the same test samples, which favors the baselines.

    Args:
        labels: (N,) classes, or (N, K) indicators, of the test split.
        transferred: predictions of the transferred model in the same form.
        baselines: predictions of at least one model without transfer, by name.
        kind: one label a sample or several.
        classes: names of the K classes.
        metric: one of `metrics.scores.f1`, of the overall gain; classes are always compared by their F1.
        seed: of the bootstrap.
        seed_sd: standard deviation of the gain over refits with other seeds.
        class_seed_sd: the same of each class's gain, (K,).
    """
    n_classes = len(classes)

    def score(predictions: np.ndarray) -> float:
        return float(f1(count(labels, predictions, kind, n_classes), metric))

    rival = max(baselines, key=lambda name: score(baselines[name]))
    beside = baselines[rival]
    interval = difference_interval(
        labels, transferred, beside, kind, n_classes, metric=metric, seed=seed, seed_sd=seed_sd
    )
    one, other = (f1_per_class(count(labels, said, kind, n_classes)) for said in (transferred, beside))
    level = 1 - (1 - LEVEL) / n_classes
    each = class_difference_intervals(
        labels, transferred, beside, kind, n_classes, level=level, seed=seed, seed_sd=class_seed_sd
    )
    intervals = [(low, high) for low, high in each.tolist()]
    per_class = tuple(
        ClassGain(name=name, gain=gain, interval=held, verdict=judge(held))
        for name, gain, held in zip(classes, (one - other).tolist(), intervals, strict=True)
    )
    return TransferVerdict(
        rival=rival,
        gain=score(transferred) - score(beside),
        interval=interval,
        verdict=judge(interval),
        per_class=per_class,
    )
