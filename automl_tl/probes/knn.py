"""The nearest neighbors' labels, each sample judged by the others: no fit, no parameter, a second opinion on features.

Similarity is the cosine. Notation: N samples, d features, K classes, k neighbors.
"""

from __future__ import annotations

import numpy as np

from automl_tl.metrics.scores import Kind
from automl_tl.probes.centering import Features, chunks
from automl_tl.probes.targets import indicators

COLUMNS = 4096  # samples that a chunk of others is compared with at once


def knn_loo(
    features: Features,
    labels: np.ndarray,
    kind: Kind,
    n_outputs: int,
    *,
    k: int = 5,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Share of each class among the k nearest other samples: (N, K) probabilities.

    Every neighbor has one vote and a little more by its similarity, so that the nearer ones decide a draw and never
    turn a majority. Of equally near samples the first count. Time grows as N^2 d.

    Args:
        features: (N, d) floats.
        labels: (N,) int64 classes, or (N, K) 0/1 for several labels a sample.
        kind: one label a sample or several.
        n_outputs: K.
        k: neighbors that vote.
        groups: (N,) integers; samples of one group are no neighbors.
    """
    targets = indicators(labels, kind, n_outputs)
    frequencies = targets.mean(0)
    said = np.empty_like(targets)
    for rows in chunks(len(targets), max(features.shape[1], COLUMNS)):
        similarity, neighbors = _nearest(features, rows, k, groups)
        extra = np.nan_to_num(similarity.astype(np.float64), neginf=0.0) / (4 * k)
        votes = np.where(np.isfinite(similarity), 1 + extra, 0.0)
        total = votes.sum(1, keepdims=True)
        shares = np.einsum("nk,nkc->nc", votes, targets[neighbors])
        said[rows] = np.divide(shares, total, out=np.tile(frequencies, (len(shares), 1)), where=total > 0)
    return said


def _nearest(features: Features, rows: slice, k: int, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and indices of the k nearest others of these rows, each (rows, k); -inf where there are too few."""
    own = _unit(features[rows])
    numbers = np.arange(rows.start, rows.stop)
    similarity = np.full((len(own), k), -np.inf, np.float32)
    neighbors = np.zeros((len(own), k), np.int64)
    for start in range(0, features.shape[0], COLUMNS):
        others = np.arange(start, min(start + COLUMNS, features.shape[0]))
        near = own @ _unit(features[start : start + COLUMNS]).T
        barred = numbers[:, None] == others if groups is None else groups[rows][:, None] == groups[others]
        near[barred] = -np.inf
        similarity, neighbors = _keep_largest(
            np.concatenate([similarity, near], 1),
            np.concatenate([neighbors, np.broadcast_to(others, near.shape)], 1),
            k,
        )
    return similarity, neighbors


def _keep_largest(similarity: np.ndarray, neighbors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of each row in their order; of equal ones at the border the first."""
    border = -np.partition(-similarity, k - 1, axis=1)[:, k - 1 : k]
    larger, equal = similarity > border, similarity == border
    kept = larger | (equal & (equal.cumsum(1) <= k - larger.sum(1, keepdims=True)))
    shape = (len(similarity), k)
    return similarity[kept].reshape(shape), neighbors[kept].reshape(shape)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of norm 1 in single precision; rows of zeros stay."""
    values = np.asarray(rows, dtype=np.float32)
    norms = np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(values / np.where(norms > 0, norms, 1).astype(np.float32))
