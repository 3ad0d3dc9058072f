"""Copies among samples whose test split is drawn: an answer that was learnt must not be asked for.

Equal samples only. Near-duplicates are known by their features, long after: they are counted in the test split.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from automl_tl.data.digests import DIGEST_BYTES, digest_samples
from automl_tl.data.labelled import Labelled
from automl_tl.data.samples import ImageSamples, Samples, TableSamples, together


@dataclass(frozen=True, slots=True, eq=False)
class Copies:
    """Which of N samples are equal."""

    units: np.ndarray  # (N,) int64: those of one number have to lie on one side of a split
    learnt: np.ndarray  # (N,) bool: equal to one that is learnt from whatever is drawn
    parted: tuple[str, ...]  # classes whose copies may be parted, as they have too few different samples

    @property
    def count(self) -> int:
        """Samples that could be left out, and every different one would still be there."""
        return int(self.learnt.sum()) + int((~self.learnt).sum()) - len(np.unique(self.units[~self.learnt]))


def copies_in(part: Labelled, validation: Labelled | None, *, at_least: int) -> Copies:
    """Find what is equal among the samples of a part, and to those of a validation part that is given.

    Rows of tables are left alone: with few distinct values, equal rows are no copies. So are samples that have groups,
    which say themselves what belongs together, and those of classes that have fewer than `at_least` different ones.
    """
    n = len(part)
    if isinstance(part.samples, TableSamples) or part.groups is not None:
        return Copies(np.arange(n), np.zeros(n, bool), ())
    units = originals(part.samples if validation is None else together(part.samples, validation.samples))
    learnt = np.isin(units[:n], units[n:])
    units = units[:n]
    held_by = {(name, units[index]) for index in np.flatnonzero(~learnt) for name in part.labels[index]}
    different = Counter(name for name, _ in held_by)
    few = {name for names in part.labels for name in names if different[name] < at_least}
    free = np.array([bool(few.intersection(names)) for names in part.labels], bool)
    return Copies(np.where(free, np.arange(n), units), learnt & ~free, tuple(sorted(few)))


def originals(samples: Samples) -> np.ndarray:
    """The first sample that each one is equal to, itself included: (N,) int64.

    Of files those alone are read that have the size of another one.
    """
    found = np.arange(len(samples))
    maybe = found
    if isinstance(samples, ImageSamples):
        sizes = [_size(source) for source in samples.sources]
        _, which, counts = np.unique(sizes, return_inverse=True, return_counts=True)
        maybe = np.flatnonzero(counts[which] > 1)
    digests = digest_samples(samples.take(maybe)).view(f"S{DIGEST_BYTES}").reshape(-1)
    _, first, which = np.unique(digests, return_index=True, return_inverse=True)
    found[maybe] = maybe[first[which]]
    return found


def _size(source: Path | np.ndarray) -> int:
    """Bytes; of what is no file, or cannot be asked, none."""
    try:
        return source.stat().st_size if isinstance(source, Path) else source.nbytes
    except OSError:
        return 0  # whoever reads it says what is wrong
