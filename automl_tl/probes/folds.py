"""Folds for probes that have no leave-one-out formula: stratified, grouped, the same for the same seed."""

from __future__ import annotations

import numpy as np

from automl_tl.probes.targets import members


def assign_folds(targets: np.ndarray, n_folds: int, *, groups: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """Fold of each of N samples: (N,) integers from 0, at most `n_folds` of them and each with a sample or more.

    The samples of a class are dealt out in turn, so that folds differ by one of them at most. A sample of several
    labels counts as one of its rarest label.

    Args:
        targets: (N, K) indicators.
        n_folds: how many folds; fewer where there are fewer samples or groups.
        groups: (N,) integers; samples of one group share a fold. Then classes are as even as whole groups allow.
        seed: decides who goes where.

    Raises:
        DataError: all samples are of one group.
    """
    rng = np.random.default_rng(seed)
    if groups is not None:
        return _deal_groups(targets, members(groups), n_folds, rng)
    frequency = np.where(targets > 0, targets.sum(0), np.inf)
    rarest = np.where(targets.any(1), frequency.argmin(1), targets.shape[1])
    order = rng.permutation(len(targets))
    order = order[np.argsort(rarest[order], kind="stable")]
    folds = np.empty(len(targets), dtype=np.int64)
    folds[order] = np.arange(len(targets)) % n_folds
    return folds


def _deal_groups(targets: np.ndarray, groups: list[np.ndarray], n_folds: int, rng: np.random.Generator) -> np.ndarray:
    """Large groups first, each to the fold that has the least of its classes so far."""
    n_folds = min(n_folds, len(groups))
    weights = 1 / targets.sum(0).clip(min=1)  # classes count alike, however many samples they have
    held = np.zeros((n_folds, targets.shape[1]))
    sizes = np.zeros(n_folds)
    folds = np.empty(len(targets), dtype=np.int64)
    order = rng.permutation(len(groups))
    for index in sorted(order, key=lambda index: -len(groups[index])):
        rows = groups[index]
        counts = targets[rows].sum(0)
        # An empty fold goes before all others, so that none stays empty.
        chosen = int(np.lexsort((sizes, held @ (weights * counts), sizes > 0))[0])
        held[chosen] += counts
        sizes[chosen] += len(rows)
        folds[rows] = chosen
    return folds
