"""Features in their own axes: one eigendecomposition that all linear probes and scores read.

The smaller Gram matrix of the centered features A (see `centering`) is decomposed: A A^T = U S U^T for N <= d, else
A^T A = V S V^T.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from automl_tl.probes.centering import Centered, Features, center

FEW_SAMPLES = 4096  # with more, the largest eigenvalues swamp the small ones in single precision

NO_EXTENT = 1e-9  # share of the largest value below which one is rounding


@dataclass(frozen=True, slots=True)
class Decomposition:
    """The axes of A; `values` are its squared singular values, in rising order."""

    centered: Centered
    values: np.ndarray  # (r,)
    left: np.ndarray | None  # U (N, r), r = N - 1: all directions but that of the intercept
    right: np.ndarray | None  # V (d, r), r = d; one of both is None

    def project(self, matrix: np.ndarray) -> np.ndarray:
        """U^T times a matrix (N, M), or V^T A^T times it: (r, M)."""
        if self.left is not None:
            return np.asarray(self.left.T @ matrix)
        return np.asarray(self.directions.T @ self.centered.adjoint(matrix))

    def expand(self, matrix: np.ndarray) -> np.ndarray:
        """A^T U times a matrix (r, M), or V times it: (d, M)."""
        return self.centered.adjoint(self.left @ matrix) if self.left is not None else self.directions @ matrix

    def coordinates(self, rows: slice | np.ndarray, n_axes: int | None = None) -> np.ndarray:
        """Rows of A along its axes, the widest last: U sqrt(S) or A V, (rows, r) or the `n_axes` widest ones."""
        kept = slice(0 if n_axes is None else max(0, len(self.values) - n_axes), None)
        if self.left is not None:
            return np.asarray(self.left[rows, kept] * np.sqrt(self.values[kept]).astype(self.left.dtype))
        return np.asarray(self.centered.rows(rows) @ self.directions[:, kept].astype(self.centered.dtype, copy=False))

    def to_axes(self, weight: np.ndarray) -> np.ndarray:
        """V^T times a matrix (d, M): how a linear map of A's columns acts along the axes, (r, M)."""
        if self.left is None:
            return np.asarray(self.directions.T @ weight)
        return np.asarray(self._inverse_root[:, None] * (self.left.T @ self.centered.times(weight)))

    def from_axes(self, weight: np.ndarray) -> np.ndarray:
        """V times a matrix (r, M): the linear map of A's columns that acts so along the axes, (d, M)."""
        return self.expand(weight if self.left is None else self._inverse_root[:, None] * weight)

    @property
    def _inverse_root(self) -> np.ndarray:
        """1 / sqrt(S), 0 along axes that no sample extends to."""
        extends = self.values > NO_EXTENT * self.values.max(initial=0)
        return np.where(extends, 1 / np.sqrt(np.where(extends, self.values, 1)), 0)

    @property
    def directions(self) -> np.ndarray:
        """V, of N > d."""
        assert self.right is not None
        return self.right


def decompose(features: Features, weights: np.ndarray | None = None) -> Decomposition:
    """Decompose features (N, d) under the weights (N,) of the samples, by default equal ones.

    Raises:
        DataError: fewer than two samples, or a feature that is not finite.
    """
    centered = center(features, weights)
    n, d = centered.shape
    if n > d:
        gram = np.zeros((d, d), centered.dtype if n <= FEW_SAMPLES else np.float64)
        for part in centered.parts():
            rows = centered.rows(part)
            gram += rows.T @ rows
        values, vectors = _eigh(gram)
        return Decomposition(centered, values.astype(np.float64).clip(min=0), None, vectors)
    rows = centered.rows(slice(0, n))
    gram = rows @ rows.T
    # The intercept is orthogonal to A's columns. Lifted above all other axes it comes last, and is left away.
    intercept = centered.intercept.astype(gram.dtype)
    gram += (1.5 * np.linalg.norm(gram) + 1) * np.outer(intercept, intercept)
    values, vectors = _eigh(gram)
    return Decomposition(centered, values[:-1].astype(np.float64).clip(min=0), vectors[:, :-1], None)


def _eigh(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, ascending, and eigenvectors in columns.

    Torch's, which a child has imported anyway: SciPy's linear algebra takes longer to import than to decompose the taps
    of a small task, and NumPy's takes twice as long for float32.
    """
    import torch

    values, vectors = torch.linalg.eigh(torch.from_numpy(gram))
    return values.numpy(), vectors.numpy()
