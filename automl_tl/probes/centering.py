"""Features about their mean at one scale, read in chunks of rows.

A = sqrt(w) (X - mean) / scale, of N samples and d columns, where the w are weights of mean 1, the mean is the weighted
one, and the scale makes the mean squared norm of a sample 1. One scale for all columns: a scale for each would blow up
columns that hardly vary. Features may lie on disk and be of any float type; no second copy of a large one comes to be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from automl_tl.errors import DataError

CHUNK = 1 << 22  # numbers that are converted at once: 32 MiB
EXACT_WORK = 1 << 28  # multiplications up to which double precision costs next to nothing
CONSTANT = 1e-12  # share of the squared norm about the mean below which features do not vary but are rounded


class Features(Protocol):
    """A matrix (N, d) that gives its rows: an array, a memory map, or several side by side."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        ...

    def __getitem__(self, rows: Any, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Centered:
    """The matrix A, of which only chunks are ever in memory."""

    features: Features
    mean: np.ndarray  # (d,)
    scale: float
    root: np.ndarray  # (N,) square roots of the weights

    @property
    def shape(self) -> tuple[int, int]:
        """N and d."""
        return len(self.root), len(self.mean)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the products with A."""
        n, d = self.shape
        return np.dtype(np.float64 if n * d * min(n, d) <= EXACT_WORK else np.float32)

    @property
    def intercept(self) -> np.ndarray:
        """The unit vector that stands for a constant column, orthogonal to A's: (N,)."""
        return np.asarray(self.root / np.sqrt(len(self.root)))

    def parts(self, chosen: np.ndarray | None = None) -> Iterator[slice | np.ndarray]:
        """All rows, or the chosen ones, a chunk at a time."""
        for part in chunks(len(self.root) if chosen is None else len(chosen), len(self.mean)):
            yield part if chosen is None else chosen[part]

    def rows(self, chosen: slice | np.ndarray) -> np.ndarray:
        """Rows of A."""
        # Less the mean before a float is shortened: means may be far from 0.
        deviations: np.ndarray = np.subtract(self.features[chosen], self.mean, dtype=np.float64)
        values = deviations.astype(self.dtype, copy=False)
        values *= (self.root[chosen] / self.scale).astype(self.dtype)[:, None]
        return values

    def times(self, matrix: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
        """A, or its chosen rows, times a matrix (d, M): (N, M)."""
        short = matrix.astype(self.dtype, copy=False)
        return np.concatenate([self.rows(part) @ short for part in self.parts(chosen)]).astype(np.float64, copy=False)

    def adjoint(self, matrix: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
        """The transpose of A, or of its chosen rows, times a matrix (N, M): (d, M)."""
        total = np.zeros((len(self.mean), matrix.shape[1]))
        for part, own in zip(self.parts(chosen), chunks(len(matrix), len(self.mean)), strict=True):
            total += self.rows(part).T @ matrix[own].astype(self.dtype, copy=False)
        return total

    def squared_norms(self) -> np.ndarray:
        """Of the rows of A: (N,)."""
        return np.concatenate([np.square(self.rows(part)).sum(1, dtype=np.float64) for part in self.parts()])


def center(features: Features, weights: np.ndarray | None = None) -> Centered:
    """Center features (N, d) under the weights (N,) of the samples, by default equal ones.

    Raises:
        DataError: fewer than two samples, or a feature that is not finite.
    """
    n, d = features.shape
    if n < 2:
        raise DataError(f"{n} sample says nothing about its features, at least 2 are needed; add samples")
    weights = np.ones(n) if weights is None else weights / weights.mean()
    total = np.zeros(d)
    for part in chunks(n, d):
        total += weights[part] @ np.asarray(features[part], np.float64)
    mean = total / n
    if not np.isfinite(mean).all():
        column = int(np.flatnonzero(~np.isfinite(mean))[0])
        raise DataError(f"column {column} of {d} features holds values that are not finite; all must be numbers")
    unscaled = Centered(features, mean, 1.0, np.sqrt(weights))
    spread = float(unscaled.squared_norms().mean())
    varies = spread > CONSTANT * (spread + float(mean @ mean))
    return replace(unscaled, scale=float(np.sqrt(spread))) if varies else unscaled


def chunks(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Slices of rows that hold about `CHUNK` numbers each."""
    size = max(1, CHUNK // max(1, n_columns))
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))
