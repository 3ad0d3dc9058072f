"""What every probe returns, and how one of several strengths of regularization is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SAME_SCORE = 1e-9
SAME_LOSS = 1e-6


class PathPoint(NamedTuple):
    """One strength of regularization and what it gives on samples that the fit has not seen."""

    strength: float
    score: float
    log_loss: float


@dataclass(frozen=True, slots=True)
class ProbeFit:
    """A linear classifier of d raw features into K classes, and how it does on samples left out of its fit.

    `features @ weight + bias` are logits: centering, scaling and temperature are folded in.
    """

    weight: np.ndarray  # (d, K) float32
    bias: np.ndarray  # (K,) float32
    strength: float  # of the regularization, larger is stronger; 0 where there is none
    out_of_fold: np.ndarray  # (N, K) probabilities of each sample from a fit without it
    score: float  # the metric on them
    log_loss: float
    path: tuple[PathPoint, ...]  # all strengths tried, strong to weak
    converged: bool = True


def choose(path: Sequence[PathPoint]) -> int:
    """Index of the best score; among equal ones of the lowest log loss, then of the largest strength."""
    most = max(point.score for point in path)
    best = [index for index, point in enumerate(path) if point.score >= most - SAME_SCORE]
    least = min(path[index].log_loss for index in best)
    return max(
        (index for index in best if path[index].log_loss <= least + SAME_LOSS), key=lambda index: path[index].strength
    )
