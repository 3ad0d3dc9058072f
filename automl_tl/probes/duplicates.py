"""Near-duplicate samples, found by their features: re-encoded or brightened pictures, quoted texts, bursts of photos.

Samples of one class are near each other too, so no fixed distance tells copies from neighbors. Where samples lie evenly
in m dimensions, the number of neighbors within a distance r grows as r^m. From the distance of the k-th neighbor
follows within which a neighbor would come by chance once in a thousand samples; what is nearer is a copy. The
dimension m is estimated from the same neighbors (as by Levina and Bickel, NeurIPS 2004, and by Facco et al.,
Scientific Reports 2017). Labels decide nothing.

Distances are those of centered features of norm 1: d^2 = 2 - 2 cosine. Notation: N samples, M others, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from automl_tl.errors import DataError
from automl_tl.probes.centering import Features, center, chunks

CHANCE = 1e-3  # neighbors within the reach of a sample, were the samples around it evenly spread
NEIGHBORS = 10  # whose distance is a sample's own scale
REFERENCES = 4096  # random samples among which these neighbors are sought
WIDEST = 0.6  # of a sample's own scale, however many dimensions there are
SHARED = 0.25  # of the median reach, which every sample has: many copies of one sample make its own scale small
LEAST_COSINE = 0.9  # of near-duplicates, however far off all other samples are
EXACT = 1e-5  # distance at which features are equal but for rounding
ROUNDING = 1e-3  # of distances that come from cosines in single precision
AXES = 128  # on which candidates are sought
TILE = 4096  # samples a side of the distances in memory at once: 64 MiB
PAIRS = 1 << 14  # candidates whose distance is computed at once


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Which samples are near-duplicates, directly or by way of others."""

    groups: np.ndarray  # (N,) int64: equal for near-duplicates, numbered from 0 in the order of their first samples
    pairs: np.ndarray  # (P, 2) int64: near-duplicates that connect the groups, the lower index first
    across: np.ndarray  # (Q, 2) int64: each other that has near-duplicates among the samples, and the nearest of them
    dimension: float  # of the neighborhoods; 0 where there were too few samples to tell
    reach: float  # median distance within which samples are near-duplicates

    @property
    def n_duplicated(self) -> int:
        """How many of the N samples have a near-duplicate among them."""
        return len(np.unique(self.pairs))


def find_duplicates(features: Features, *, others: Features | None = None) -> Duplicates:
    """Find the near-duplicates among N samples, and those that M others have among them.

    All pairs are compared, first by bounds of their distances on a few axes, then, where these are small enough, by
    all features. Time grows as N (N + M); memory is a copy of the features and a tile of distances. Samples with equal
    features are always near-duplicates.

    Args:
        features: (N, D) floats, the pooled outputs of a layer group. Those three quarters along a backbone serve best:
            before, brightness and noise count more than what is seen; behind, samples of a class fall together.
        others: (M, D), such as the test split. They do not change what is found among the samples.

    Raises:
        DataError: fewer than two samples, or features that are not finite.
    """
    mean = center(features).mean
    firsts, same = _distinct(features)
    units = _units(features, mean, firsts)
    rng = np.random.default_rng(0)
    references = np.sort(rng.permutation(len(units))[:REFERENCES])
    scale = _scale(units, units[references], references)
    axes = _axes(units[references], rng)
    reach = scale.reach(scale.own)
    points = _points(units, axes)
    roots = np.arange(len(units))
    found = [np.stack([firsts[same], np.arange(len(same))], 1)[firsts[same] < np.arange(len(same))]]
    for left, right in _candidates(points, reach):
        for part in range(0, len(left), PAIRS):
            a, b = left[part : part + PAIRS], right[part : part + PAIRS]
            apart = roots[a] != roots[b]
            a, b = a[apart], b[apart]
            near = np.linalg.norm(units[a] - units[b], axis=1) < np.maximum(reach[a], reach[b])
            a, b = a[near], b[near]
            roots = _merged(roots, a, b)
            found.append(np.stack([firsts[a], firsts[b]], 1))
    return Duplicates(
        groups=np.unique(roots[same], return_inverse=True)[1].astype(np.int64),
        pairs=np.sort(np.concatenate(found), 1),
        across=_across(_units(others, mean), units, axes, scale, firsts, references),
        dimension=scale.dimension,
        reach=float(np.median(reach)),
    )


def say(
    duplicates: Duplicates, ids: Sequence[str], *, other_ids: Sequence[str] | None = None, others: str = "test"
) -> str:
    """One sentence for people: how many near-duplicates there are, and an example by the samples' ids.

    Args:
        duplicates: what was found.
        ids: of the N samples, those of the training data.
        other_ids: of the M others; None: there were none to compare with.
        others: which split the others are of.
    """
    n_groups = int((np.bincount(duplicates.groups) > 1).sum())
    if n_groups:
        first, second = duplicates.pairs[0]
        whole = "a group that every split keeps whole" if n_groups == 1 else f"{n_groups} groups that splits keep whole"
        said = (
            f"{duplicates.n_duplicated} of {len(ids)} training samples are near-duplicates of each other, such as "
            f"{ids[first]} and {ids[second]}, in {whole}"
        )
    else:
        said = f"No two of {len(ids)} training samples are near-duplicates"
    if other_ids is None:
        return f"{said}."
    if not len(duplicates.across):
        return f"{said}; none of {len(other_ids)} {others} samples has a near-duplicate among them."
    other, nearest = duplicates.across[0]
    n = len(duplicates.across)
    return (
        f"{said}; {n} of {len(other_ids)} {others} samples {'has' if n == 1 else 'have'} a near-duplicate among them, "
        f"such as {other_ids[other]} in {ids[nearest]}, which raises the {others} score."
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    """What is near in these features."""

    own: np.ndarray  # (n,) distance of each sample's k-th neighbor
    ratio: float  # of the reach to it
    dimension: float
    k: int

    def reach(self, own: np.ndarray) -> np.ndarray:
        """Distance within which samples with k-th neighbors at these distances have near-duplicates."""
        if not self.k:
            return np.full(len(own), EXACT, np.float32)
        shared = SHARED * np.median(self.own)
        reach = self.ratio * np.maximum(own, shared)
        return np.asarray(reach.clip(EXACT, np.sqrt(2 - 2 * LEAST_COSINE)), np.float32)


def _distinct(features: Features) -> tuple[np.ndarray, np.ndarray]:
    """First samples (n,) of all different features, and which of these each sample's equal: (N,)."""
    numbers: dict[bytes, int] = {}
    same = np.empty(features.shape[0], np.int64)
    firsts: list[int] = []
    for part in chunks(*features.shape):
        for index, row in enumerate(np.ascontiguousarray(features[part]), part.start):
            number = numbers.setdefault(hashlib.blake2b(row.tobytes(), digest_size=16).digest(), len(numbers))
            if number == len(firsts):
                firsts.append(index)
            same[index] = number
    return np.array(firsts), same


def _units(features: Features | None, mean: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
    """Rows about the mean, of norm 1, in single precision; rows at the mean are 0."""
    n = 0 if features is None else features.shape[0] if chosen is None else len(chosen)
    units = np.empty((n, len(mean)), np.float32)
    for part in chunks(n, len(mean)):
        assert features is not None
        rows: np.ndarray = np.subtract(features[part if chosen is None else chosen[part]], mean, dtype=np.float64)
        if not np.isfinite(rows).all():
            raise DataError("features hold values that are not finite; all must be numbers")
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        units[part] = rows / np.where(norms > 0, norms, 1)
    return units


def _scale(units: np.ndarray, references: np.ndarray, own: np.ndarray) -> _Scale:
    """The scale of samples by their neighbors among the references, which are themselves samples `own`."""
    k = min(NEIGHBORS, len(references) // 4)
    if k < 2:
        return _Scale(own=np.zeros(len(units)), ratio=0.0, dimension=0.0, k=0)
    position = np.full(len(units), -1)
    position[own] = np.arange(len(own))
    half, whole = _neighbors(units, references, k, position)
    apart = half > ROUNDING
    growth = float(np.median(np.log(whole[apart] / half[apart]))) if apart.any() else 0.0
    dimension = np.log(k / (k // 2)) / max(growth, 1e-3)
    share = CHANCE * len(references) / (k * len(units))
    return _Scale(own=whole, ratio=min(share ** (1 / dimension), WIDEST), dimension=float(dimension), k=k)


def _neighbors(
    units: np.ndarray, references: np.ndarray, k: int, position: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Distances of the neighbors k // 2 and k among the references; `position` is a sample's own among them, or -1."""
    half, whole = np.empty(len(units)), np.empty(len(units))
    for part in chunks(len(units), len(references)):
        cosine = units[part] @ references.T
        if position is not None:
            mine = np.flatnonzero(position[part] >= 0)
            cosine[mine, position[part][mine]] = -1
        np.negative(cosine, out=cosine)
        cosine.partition((k // 2 - 1, k - 1), axis=1)
        half[part], whole[part] = (np.sqrt((2 + 2 * cosine[:, i - 1]).clip(0)) for i in (k // 2, k))
    return half, whole


def _axes(units: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Orthonormal axes (D, at most AXES) that hold most of the samples' spread, by two steps of subspace iteration."""
    n_axes = min(AXES, *units.shape)
    axes = rng.standard_normal((units.shape[1], n_axes)).astype(np.float32)
    for _ in range(2):
        axes = np.linalg.qr(units.T @ (units @ axes))[0]
    return np.asarray(axes)


def _points(units: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Coordinates on the axes, and the norm of what is not on them: no two points are farther than their samples."""
    points = units @ axes
    rest = np.square(units).sum(1) - np.square(points).sum(1)
    return np.column_stack([points, np.sqrt(rest.clip(0))])


def _candidates(
    points: np.ndarray, reach: np.ndarray, others: np.ndarray | None = None, other_reach: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of points within the reach of either, tile by tile: each once, or of others and points."""
    # The product of (p, -|p|^2 / 2, 1) and (q, 1, -|q|^2 / 2) is -|p - q|^2 / 2.
    half = np.square(points).sum(1, keepdims=True) / 2
    right = np.column_stack([points, np.ones_like(half), -half])
    least = -np.square(reach) / 2 - 1e-6
    if others is None or other_reach is None:
        rows, least_rows = np.column_stack([points, -half, np.ones_like(half)]), least
    else:
        half = np.square(others).sum(1, keepdims=True) / 2
        rows, least_rows = np.column_stack([others, -half, np.ones_like(half)]), -np.square(other_reach) / 2 - 1e-6
    for top in range(0, len(rows), TILE):
        for start in range(top if others is None else 0, len(right), TILE):
            product = rows[top : top + TILE] @ right[start : start + TILE].T
            near = (product > least_rows[top : top + TILE, None]) | (product > least[start : start + TILE])
            if others is None and start == top:
                near = np.triu(near, 1)
            a, b = np.nonzero(near)
            if len(a):
                yield a + top, b + start


def _merged(roots: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Roots of the samples, the least of each group, once the groups of a and b are joined pair by pair."""
    while (roots[a] != roots[b]).any():
        lower = np.minimum(roots[a], roots[b])
        joined = roots.copy()
        np.minimum.at(joined, roots[a], lower)
        np.minimum.at(joined, roots[b], lower)
        while (joined[joined] != joined).any():
            joined = joined[joined]
        roots = joined
    return roots


def _across(
    others: np.ndarray,
    units: np.ndarray,
    axes: np.ndarray,
    scale: _Scale,
    firsts: np.ndarray,
    references: np.ndarray,
) -> np.ndarray:
    """Others with near-duplicates, and the nearest of them: (Q, 2)."""
    if not len(others):
        return np.empty((0, 2), np.int64)
    own = _neighbors(others, units[references], scale.k)[1] if scale.k else np.zeros(len(others))
    reach, other_reach = scale.reach(scale.own), scale.reach(own)
    least = np.full(len(others), np.inf)
    nearest = np.zeros(len(others), np.int64)
    for left, right in _candidates(_points(units, axes), reach, _points(others, axes), other_reach):
        for part in range(0, len(left), PAIRS):
            a, b = left[part : part + PAIRS], right[part : part + PAIRS]
            distance = np.linalg.norm(others[a] - units[b], axis=1)
            kept = distance < np.minimum(np.maximum(other_reach[a], reach[b]), least[a])
            a, b, distance = a[kept], b[kept], distance[kept]
            order = np.lexsort((-b, -distance))  # the nearest is written last
            least[a[order]], nearest[a[order]] = distance[order], firsts[b[order]]
    copies = np.flatnonzero(np.isfinite(least))
    return np.stack([copies, nearest[copies]], 1)
