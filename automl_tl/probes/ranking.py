"""Which taps to try first: rankings of taps by what probes of their features reach, and how sure that is."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from automl_tl.metrics.intervals import Interval, f1_interval
from automl_tl.metrics.scores import Kind, decide

Tap = TypeVar("Tap", bound=Hashable)

LEVEL = 0.9


def rank_taps(
    scores: Mapping[Tap, tuple[float, float]],
    *,
    logme: Mapping[Tap, float] | None = None,
    log_loss: Mapping[Tap, float] | None = None,
) -> tuple[Tap, ...]:
    """Taps by the mean of their ranks in the two scores, best first.

    Draws go to the higher `logme`, then to the lower `log_loss`, then to the tap that comes first: the cheaper one.

    Args:
        scores: leave-one-out macro-F1 of ridge and of the nearest neighbors, by tap, shallow to deep.
        logme: corrected LogME by tap.
        log_loss: leave-one-out log loss of ridge by tap.
    """
    taps = list(scores)
    if not taps:
        return ()
    ranks = _ranks(np.array([scores[tap] for tap in taps])).sum(1)
    keys = [
        (rank, -logme[tap] if logme else 0.0, log_loss[tap] if log_loss else 0.0, depth)
        for depth, (tap, rank) in enumerate(zip(taps, ranks.tolist(), strict=True))
    ]
    return tuple(taps[key[-1]] for key in sorted(keys))


def top_taps(order: Sequence[Tap], n: int = 3, *, last: Tap) -> tuple[Tap, ...]:
    """The first n taps of a ranking, and the last tap of the backbone where it is not among them."""
    first = tuple(order[:n])
    return first if last in first else (*first, last)


def interval(labels: np.ndarray, out_of_fold: np.ndarray, kind: Kind, n_outputs: int) -> Interval:
    """The 90 % interval of the macro-F1 of probabilities (N, K) of left-out samples, by the stratified bootstrap."""
    return f1_interval(labels, decide(out_of_fold, kind), kind, n_outputs, level=LEVEL)


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks in every column (T, M), 1 for the highest; equal ones share the mean of theirs."""
    higher = (scores[None] > scores[:, None]).sum(1)
    equal = (scores[None] == scores[:, None]).sum(1)
    return np.asarray(higher + (equal + 1) / 2)
