"""Splits for a search, which draws many of them: stratified folds, and a fresh holdout for every seed.

What must stay together is a unit: a group of samples, or one sample. Unlike `splits`, which carves the parts of a task
once and refuses what cannot be done well, nothing here fails: what groups forbid is done as well as they allow.

Notation: N samples, K classes or labels, U units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from automl_tl.data.splits import split_indices

RESTARTS = 5  # orders in which folds are dealt while a class is missing somewhere


def fold_numbers(
    labels: np.ndarray,
    n_folds: int,
    *,
    seed: int,
    groups: np.ndarray | None = None,
    multilabel: bool = False,
) -> np.ndarray:
    """Fold of each sample: (N,) int64 from 0, at most `n_folds` of them and each with a sample or more.

    A class of one label a sample and at least `n_folds` units is in every fold, one of two units or more is in two
    folds, so that no fold's training part lacks it. Where units hold several classes, that holds as far as a few tries
    reach. Without groups, folds differ by one sample of a class and by one in all.

    Args:
        labels: (N,) class labels of any sortable type, or an (N, K) multi-hot matrix when `multilabel`.
        n_folds: how many folds; fewer where there are fewer samples or groups.
        seed: decides who goes where.
        groups: (N,) values; samples of equal value share a fold. A single group of all samples is parted all the same.
        multilabel: how to read `labels`.
    """
    units = _units(labels, groups, multilabel)
    n_folds = max(1, min(n_folds, len(units)))
    rng = np.random.default_rng(seed)
    best: np.ndarray = np.zeros(len(units), np.int64)
    least = (len(units.totals) + 1, 0)
    for _ in range(RESTARTS):
        folds = _deal(units, n_folds, rng)
        missing = _missing(units, folds, n_folds)
        if missing < least:
            best, least = folds, missing
        if least == (0, 0):
            break
    return np.asarray(best[units.of])


def holdout(
    labels: np.ndarray,
    *,
    fraction: float,
    seed: int,
    groups: np.ndarray | None = None,
    multilabel: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return sorted indices (train, held_out): disjoint, together all N, about `fraction` of each class held out.

    A class of two units or more is held out in part, if groups of several classes allow it; one of a single unit is
    trained on. A group has about the same chance as any other, unless it is too large a part of its class. Two samples
    or more leave neither side empty.

    Args:
        labels: (N,) class labels of any sortable type, or an (N, K) multi-hot matrix when `multilabel`.
        fraction: share to hold out, between 0 and 1.
        seed: decides which samples.
        groups: (N,) values; samples of equal value stay on one side. A single group of all samples is parted all the
            same.
        multilabel: how to read `labels`.
    """
    if groups is None or len(np.unique(groups)) < 2:
        of = np.arange(len(labels))
        sizes = np.ones_like(of)
        sides = np.isin(of, split_indices(labels, fraction=fraction, seed=seed, multilabel=multilabel)[1])
    else:
        units = _units(labels, groups, multilabel)
        of, sizes = units.of, units.sizes
        sides = _draw(units, fraction, np.random.default_rng(seed))
    if len(sides) == 1:
        sides[:] = False  # there is nothing to part: it is learnt from
    elif len(sides) and (sides.all() or not sides.any()):
        # Every class is of a single unit: a score of a class never trained on is better than none.
        smallest = np.flatnonzero(sizes == sizes.min())
        sides[np.random.default_rng(seed).choice(smallest)] ^= True
    held = sides[of]
    return np.flatnonzero(~held), np.flatnonzero(held)


@dataclass(frozen=True, slots=True)
class Units:
    """What stays together, and the classes of each. P pairs of a unit and one of its classes, in the units' order."""

    of: np.ndarray  # (N,) the unit of each sample
    sizes: np.ndarray  # (U,) samples
    starts: np.ndarray  # (U + 1,) where the pairs of a unit begin
    classes: np.ndarray  # (P,)
    counts: np.ndarray  # (P,) samples of the class in the unit
    totals: np.ndarray  # (K,) samples
    spread: np.ndarray  # (K,) units that hold the class

    def __len__(self) -> int:
        return len(self.sizes)

    def pairs(self, unit: int) -> slice:
        """Which pairs are of this unit."""
        return slice(self.starts[unit], self.starts[unit + 1])

    def rarest(self) -> np.ndarray:
        """The class of each unit that the fewest units hold: (U,)."""
        owner = np.repeat(np.arange(len(self)), np.diff(self.starts))
        order = np.lexsort((self.classes, self.spread[self.classes], owner))
        return np.asarray(self.classes[order][self.starts[:-1]])


def _units(labels: np.ndarray, groups: np.ndarray | None, multilabel: bool) -> Units:
    labels = np.asarray(labels)
    n = len(labels)
    of = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    if n and of.max() == 0:
        of = np.arange(n)
    if multilabel:
        unlabeled = ~(labels > 0).any(axis=1)
        samples, classes = np.nonzero(np.column_stack([labels > 0, unlabeled]))
        n_classes = labels.shape[1] + 1
    else:
        names, classes = np.unique(labels, return_inverse=True)
        samples, n_classes = np.arange(n), len(names)
    pairs, counts = np.unique(of[samples] * n_classes + classes, return_counts=True)
    owner, classes = np.divmod(pairs, max(n_classes, 1))
    n_units = int(of.max()) + 1 if n else 0
    return Units(
        of=of,
        sizes=np.bincount(of, minlength=n_units),
        starts=np.searchsorted(owner, np.arange(n_units + 1)),
        classes=classes,
        counts=counts,
        totals=np.bincount(classes, weights=counts, minlength=n_classes),
        spread=np.bincount(classes, minlength=n_classes),
    )


def _deal(units: Units, n_folds: int, rng: np.random.Generator) -> np.ndarray:
    """Fold of each unit: those of several samples or labels one by one, then the many others by class.

    As in iterative stratification (Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011), a unit of the rarest class goes
    first, to the fold that holds least of it; of equally rare ones the largest.
    """
    held = np.zeros((n_folds, len(units.totals)))
    sizes = np.zeros(n_folds)
    folds = np.full(len(units), -1)
    rarest = units.rarest() if len(units) else folds
    single = (units.sizes == 1) & (np.diff(units.starts) == 1)
    order = rng.permutation(np.flatnonzero(~single))
    for unit in order[np.lexsort((-units.sizes[order], units.spread[rarest[order]]))]:
        own = units.pairs(unit)
        classes, counts = units.classes[own], units.counts[own]
        fill = held[:, classes] @ (counts / units.totals[classes])
        fold = np.lexsort((sizes, fill, held[:, rarest[unit]] > 0))[0]
        held[fold, classes] += counts
        sizes[fold] += units.sizes[unit]
        folds[unit] = fold
    others = rng.permutation(np.flatnonzero(single))
    others = others[np.argsort(rarest[others], kind="stable")]
    for same in np.split(others, np.flatnonzero(np.diff(rarest[others])) + 1):
        if len(same):
            quota = _level(held[:, rarest[same[0]]], sizes, len(same))
            sizes += quota
            folds[same] = np.repeat(np.arange(n_folds), quota)
    return folds


def _level(held: np.ndarray, sizes: np.ndarray, n: int) -> np.ndarray:
    """How many of n more samples each fold gets, so that what folds hold is level; equal ones by their sizes."""
    levels = held[:, None] + np.arange(n)
    lowest = np.lexsort((np.repeat(sizes, n), levels.ravel()))[:n]
    return np.bincount(lowest // n, minlength=len(held))


def _missing(units: Units, folds: np.ndarray, n_folds: int) -> tuple[int, int]:
    """How many classes of several units lie in one fold, and in how many folds a class misses that could be in all."""
    owner = np.repeat(np.arange(len(units)), np.diff(units.starts))
    present = np.zeros((n_folds, len(units.totals)), bool)
    present[folds[owner], units.classes] = True
    reached = present.sum(0)
    lonely = (reached == 1) & (units.spread >= 2) & (n_folds > 1)
    return int(lonely.sum()), int((n_folds - reached)[units.spread >= n_folds].sum())


def _draw(units: Units, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Which units are held out: in random order whatever brings the shares nearer, after one of every class.

    Never the last unit of a class, which has to be trained on. Plain numbers in lists, as units are many and small.
    """
    wanted = (units.totals * fraction).tolist()
    totals = units.totals.tolist()
    held = [0.0] * len(totals)
    pairs = list(zip(units.classes.tolist(), units.counts.tolist(), strict=True))
    starts = units.starts.tolist()
    sides = np.zeros(len(units), bool)

    def may_hold(unit: int) -> bool:
        return all(held[label] + count < totals[label] for label, count in pairs[starts[unit] : starts[unit + 1]])

    def gain(unit: int) -> float:
        """By how much the squared deviations of the classes' shares fall."""
        gained = 0.0
        for label, count in pairs[starts[unit] : starts[unit + 1]]:
            gained += count * (2 * (wanted[label] - held[label]) - count) / totals[label] ** 2
        return gained

    def hold(unit: int) -> None:
        sides[unit] = True
        for label, count in pairs[starts[unit] : starts[unit + 1]]:
            held[label] += count

    order = rng.permutation(len(units)).tolist()
    holders: list[list[int]] = [[] for _ in totals]
    for unit in order:
        for label, _ in pairs[starts[unit] : starts[unit + 1]]:
            holders[label].append(unit)
    for label in np.argsort(units.spread, kind="stable").tolist():
        if held[label]:
            continue
        chosen = next((unit for unit in holders[label] if gain(unit) > 0 and may_hold(unit)), None)
        if chosen is None:
            chosen = max(filter(may_hold, holders[label]), key=gain, default=None)
        if chosen is not None:
            hold(chosen)
    for unit in order:
        if not sides[unit] and gain(unit) > 0 and may_hold(unit):
            hold(unit)
    return sides
