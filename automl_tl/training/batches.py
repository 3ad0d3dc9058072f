"""Which rows form a batch. Texts of similar length go together, so that padding stays small."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

MIN_STEPS = 30
"""Fewest optimizer steps an epoch has: on a small task one pass is too few to learn or to judge anything by."""

POOL = 16  # batches whose rows are sorted by length together


def steps_per_epoch(n_rows: int, batch_size: int) -> int:
    """Optimizer steps in an epoch: one pass over the rows, or where that is fewer, MIN_STEPS."""
    return max(MIN_STEPS, _batches_per_pass(n_rows, batch_size))


def epoch_batches(
    n_rows: int, batch_size: int, generator: np.random.Generator, lengths: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Yield the index arrays of one epoch, each pass a new order; every row is in each pass once.

    A remainder is spread over all batches, so that none is tiny, and none is larger than `batch_size`. Where an epoch
    is more than a pass, its last one ends when there are enough steps.
    """
    per_pass, left = _batches_per_pass(n_rows, batch_size), steps_per_epoch(n_rows, batch_size)
    while left > 0:
        order = generator.permutation(n_rows)
        if lengths is not None:
            order = _similar_lengths_together(order, lengths, batch_size)
        batches = np.array_split(order, per_pass)
        if lengths is not None:
            generator.shuffle(batches)
        yield from batches[:left]
        left -= per_pass


def _batches_per_pass(n_rows: int, batch_size: int) -> int:
    return max(1, -(-n_rows // batch_size))


def _similar_lengths_together(order: np.ndarray, lengths: np.ndarray, batch_size: int) -> np.ndarray:
    pools = [order[start : start + POOL * batch_size] for start in range(0, len(order), POOL * batch_size)]
    return np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])


def evaluation_batches(n_rows: int, batch_size: int, lengths: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Yield every index once, texts in order of length."""
    order = np.arange(n_rows) if lengths is None else np.argsort(lengths, kind="stable")
    for start in range(0, n_rows, batch_size):
        yield order[start : start + batch_size]
