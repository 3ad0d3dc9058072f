"""Two-way splits of sample indices: stratified, grouped, multi-label. Deterministic from the seed.

Knows labels and groups only, never the samples.
"""

from __future__ import annotations

import numpy as np

from automl_tl.errors import DataError

RESTARTS = 10  # orders in which a grouped split tries the groups; each is greedy and cheap


def split_indices(
    labels: np.ndarray,
    *,
    fraction: float,
    seed: int,
    groups: np.ndarray | None = None,
    multilabel: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return sorted indices (kept, held_out): disjoint, together all N, about `fraction` of each class held out.

    Every class with two samples or more appears on both sides; with several labels a sample, as far as the
    combinations of labels allow.

    Args:
        labels: (N,) class labels of any sortable type, or an (N, K) multi-hot matrix when `multilabel`.
        fraction: share to hold out, between 0 and 1.
        seed: decides which samples.
        groups: (N,) values; samples of equal value stay on one side.
        multilabel: how to read `labels`.

    Raises:
        DataError: the groups cannot be kept whole with every class on both sides.
    """
    rng = np.random.default_rng(seed)
    if groups is not None:
        held_out = _grouped(labels, np.asarray(groups), fraction, rng, multilabel)
    elif multilabel:
        held_out = _iterative(np.asarray(labels) > 0, fraction, rng)
    else:
        held_out = _stratified(labels, fraction, rng)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _stratified(labels: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Return the held-out mask: each class within one sample of its share, the total by largest remainders."""
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    ideal = counts * fraction
    most = np.maximum(counts - 1, 0)
    quota = np.clip(np.floor(ideal), np.minimum(1, most), most).astype(int)
    missing = round(len(labels) * fraction) - quota.sum()
    for index in np.argsort(quota - ideal, kind="stable"):
        if missing > 0 and quota[index] < min(ideal[index], most[index]):
            quota[index] += 1
            missing -= 1
    held_out = np.zeros(len(labels), dtype=bool)
    for index, take in enumerate(quota):
        held_out[rng.permutation(np.flatnonzero(codes == index))[:take]] = True
    return held_out


def _iterative(positive: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Return the held-out mask by iterative stratification (Sechidis, Tsoumakas & Vlahavas, ECML PKDD 2011).

    The rarest label still to be placed goes first, each of its samples to the side that misses that label most.
    Unlike the paper's, a label's shares are whole numbers of at least one, so that two samples part.
    """
    counts = positive.sum(axis=0)
    share = np.where(counts >= 2, np.clip(np.rint(counts * fraction), 1, np.maximum(counts - 1, 1)), 0)
    wanted = np.stack([counts - share, share]).astype(float)  # (2 sides, K labels)
    room = np.array([len(positive) * (1 - fraction), len(positive) * fraction])
    side = np.full(len(positive), -1)
    while (left := side < 0).any():
        open_counts = positive[left].sum(axis=0)
        if not open_counts.any():
            break
        rarest = int(np.argmin(np.where(open_counts > 0, open_counts, np.inf)))
        for index in rng.permutation(np.flatnonzero(left & positive[:, rarest])):
            chosen = int(np.lexsort((room, wanted[:, rarest]))[-1])  # ties go to the emptier side
            side[index] = chosen
            wanted[chosen] -= positive[index]
            room[chosen] -= 1
    for index in rng.permutation(np.flatnonzero(side < 0)):  # samples without labels fill up the sides
        side[index] = int(np.argmax(room))
        room[side[index]] -= 1
    held_out: np.ndarray = side == 1
    return held_out


def _grouped(
    labels: np.ndarray, groups: np.ndarray, fraction: float, rng: np.random.Generator, multilabel: bool
) -> np.ndarray:
    """Return the held-out mask of the best of several greedy assignments of whole groups."""
    names, members = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise DataError(f"the samples form {len(names)} group, at least 2 are needed to split them by group")
    classes, one_hot = _one_hot(labels, multilabel)
    counts = np.zeros((len(names), one_hot.shape[1]))  # (groups, classes)
    np.add.at(counts, members, one_hot)
    trials = [_greedy_groups(counts, fraction, rng.permutation(len(names))) for _ in range(RESTARTS)]
    best = min(trials, key=lambda held: _group_cost(counts, held, fraction))
    lacking = np.flatnonzero(_lacking(counts, best))
    if lacking.size:
        name = str(classes[lacking[0]])
        raise DataError(
            f"class {name!r} cannot be on both sides of a split that keeps groups whole: it lies in "
            f"{int((counts[:, lacking[0]] > 0).sum())} of {len(names)} groups; use smaller groups or add samples"
        )
    return best[members]


def _one_hot(labels: np.ndarray, multilabel: bool) -> tuple[np.ndarray, np.ndarray]:
    if multilabel:
        return np.arange(labels.shape[1]), np.asarray(labels) > 0
    classes, codes = np.unique(labels, return_inverse=True)
    return classes, np.eye(len(classes))[codes]


def _greedy_groups(counts: np.ndarray, fraction: float, order: np.ndarray) -> np.ndarray:
    """Return which groups to hold out: first one of every class, then whatever brings the shares nearer.

    Large groups go first. A group is never held out when that would leave the other side without one of its classes.
    """
    total = counts.sum(axis=0)
    held = np.zeros(len(counts), dtype=bool)
    held_counts = np.zeros_like(total)  # of the groups held out so far

    def may_hold(group: int) -> bool:
        return not held[group] and bool((held_counts + counts[group] < total)[counts[group] > 0].all())

    def deviation_with(group: int) -> float:
        return _deviation(held_counts + counts[group], total, fraction)

    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    for label in np.argsort((counts > 0).sum(axis=0), kind="stable"):
        if held_counts[label] > 0:
            continue
        fitting = [group for group in order if counts[group, label] > 0 and may_hold(group)]
        if fitting:
            chosen = min(fitting, key=deviation_with)
            held[chosen] = True
            held_counts += counts[chosen]
    for group in order:
        if may_hold(group) and deviation_with(group) < _deviation(held_counts, total, fraction):
            held[group] = True
            held_counts += counts[group]
    return held


def _deviation(held_counts: np.ndarray, total: np.ndarray, fraction: float) -> float:
    return float(np.square(held_counts / np.maximum(total, 1) - fraction).sum())


def _lacking(counts: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Return the mask of classes of two samples or more that miss on one of the sides."""
    one_sided = (counts[held].sum(axis=0) == 0) | (counts[~held].sum(axis=0) == 0)
    return np.asarray(one_sided & (counts.sum(axis=0) >= 2))


def _group_cost(counts: np.ndarray, held: np.ndarray, fraction: float) -> tuple[int, float]:
    return int(_lacking(counts, held).sum()), _deviation(counts[held].sum(axis=0), counts.sum(axis=0), fraction)
