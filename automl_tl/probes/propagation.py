"""Labels that spread over the graph of nearest neighbors: Z = (I - alpha S)^-1 Y (Zhou et al., NIPS 2003).

S is the normalized graph of the k nearest neighbors by cosine, labeled and unlabeled samples alike. Neighbors are found
once; a graph without some of the labeled samples is put together from what was found.

Notation: N labeled and M unlabeled samples, the labeled ones first; d features, K classes, n samples of a graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from automl_tl.probes.centering import chunks

ALPHA = 0.9  # how far labels spread: the share of a sample's label that its neighbors decide
NEIGHBORS = 10
POWER = 3  # of the cosine, the weight of an edge (Iscen et al., CVPR 2019)
STEPS = 200  # of conjugate gradients at most
ENOUGH = 1e-6  # share of a right side that may be left


@dataclass(frozen=True, slots=True)
class Neighborhood:
    """Who is near whom: the k nearest unlabeled samples of each, and how near all labeled ones are."""

    nearest: np.ndarray  # (N + M, k) indices of unlabeled samples
    similarity: np.ndarray  # (N + M, k) theirs; -inf stands for none
    to_labeled: np.ndarray  # (N + M, N); -inf of a sample to itself

    def graph(self, kept: np.ndarray) -> Any:
        """S, sparse and symmetric (n, n), of these labeled samples, in this order, and then of all unlabeled ones."""
        from scipy.sparse import coo_array, diags_array  # slow to import, and no other probe needs it

        n_labeled = self.to_labeled.shape[1]
        nodes = np.concatenate([kept, np.arange(n_labeled, len(self.nearest))])
        similarity = np.concatenate([self.similarity[nodes], self.to_labeled[np.ix_(nodes, kept)]], 1)
        others = np.concatenate([self.nearest[nodes], np.broadcast_to(kept, (len(nodes), len(kept)))], 1)
        place = np.zeros(len(self.nearest), np.int64)
        place[nodes] = np.arange(len(nodes))
        chosen = _largest(similarity, min(NEIGHBORS, similarity.shape[1]))
        weights = np.take_along_axis(similarity, chosen, 1).clip(min=0).astype(np.float64) ** POWER
        ends = place[np.take_along_axis(others, chosen, 1)]
        starts = np.repeat(np.arange(len(nodes)), chosen.shape[1])
        directed = coo_array((weights.ravel(), (starts, ends.ravel())), shape=(len(nodes), len(nodes))).tocsr()
        edges = directed.maximum(directed.T)
        degrees = edges.sum(1)
        root = diags_array(1 / np.sqrt(np.where(degrees > 0, degrees, 1)))
        return (root @ edges @ root).tocsr()


def find_neighbors(features: np.ndarray, unlabeled: np.ndarray) -> Neighborhood:
    """Compare all samples, (N, d) and (M, d), with all. Time grows as (N + M)^2 d."""
    n_labeled, n = len(features), len(features) + len(unlabeled)
    units = _unit(np.concatenate([features, unlabeled]))
    k = min(NEIGHBORS, len(unlabeled))
    nearest, similarity = np.empty((n, k), np.int64), np.empty((n, k), np.float32)
    to_labeled = np.empty((n, n_labeled), np.float32)
    for part in chunks(n, n):
        near = units[part] @ units.T
        rows = np.arange(part.start, part.stop)
        near[np.arange(len(rows)), rows] = -np.inf
        to_labeled[part] = near[:, :n_labeled]
        chosen = _largest(near[:, n_labeled:], k)
        similarity[part] = np.take_along_axis(near[:, n_labeled:], chosen, 1)
        nearest[part] = n_labeled + chosen
    return Neighborhood(nearest, similarity, to_labeled)


def spread_labels(graph: Any, targets: np.ndarray) -> np.ndarray:
    """What spreads to the unlabeled samples of a graph, (M, K) from 0.

    How far is no choice: the best of three by left-out samples was no better on new ones, and its score flattered.

    Args:
        graph: S of N labeled and M unlabeled samples.
        targets: (N, K) indicators. All classes spread the same in all, however many samples they have.
    """
    labels = np.zeros((graph.shape[0], targets.shape[1]))
    labels[: len(targets)] = targets / targets.sum(0).clip(min=1)
    return solve(graph, ALPHA, labels)[len(targets) :].clip(min=0)


def solve(graph: Any, alpha: float, wanted: np.ndarray) -> np.ndarray:
    """(I - alpha S) Z = Y for Z (n, K) by conjugate gradients, a column at a time but all at once."""
    found = wanted.copy()
    residual = wanted - found + alpha * (graph @ found)
    direction = residual.copy()
    left = np.square(residual).sum(0)
    enough = ENOUGH**2 * np.square(wanted).sum(0)
    for _ in range(STEPS):
        if (left <= enough).all():
            break
        image = direction - alpha * (graph @ direction)
        step = left / np.maximum((direction * image).sum(0), np.finfo(float).tiny)
        found += step * direction
        residual -= step * image
        before, left = left, np.square(residual).sum(0)
        direction = residual + left / np.maximum(before, np.finfo(float).tiny) * direction
    return found


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    """Columns of the k largest values of each row: (rows, k)."""
    return np.argpartition(-values, k - 1, axis=1)[:, :k]


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of norm 1 in single precision; rows of zeros stay."""
    values = np.asarray(rows, dtype=np.float32)
    norms = np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(values / np.where(norms > 0, norms, 1).astype(np.float32))
