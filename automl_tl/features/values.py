"""Values of samples in the store: an index into mapped shards. Nothing is read before it is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from automl_tl.data.digests import DIGEST_BYTES
from automl_tl.features.shards import Shard


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredValues:
    """Rows of N samples, whatever shards they lie in; a sample may come several times.

    They stay readable after an eviction, until the last reader is gone. A child process opens the entry itself: the
    pages are shared, whereas a pickle of this would copy them.
    """

    shards: tuple[Shard, ...]
    shard_of: np.ndarray  # (N,): which shard holds the sample
    row_of: np.ndarray  # (N,): its row there
    lengths: np.ndarray | None  # int64, (N,): items in each row; None where rows are not ragged

    def __len__(self) -> int:
        return len(self.row_of)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row, or of one item of a ragged row."""
        return self.shards[0].row_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """As the values are stored: bfloat16 as the bits, in uint16."""
        return self.shards[0].values.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the N rows."""
        n_items = len(self) if self.lengths is None else int(self.lengths.sum())
        return n_items * math.prod(self.row_shape) * self.dtype.itemsize

    def gather(self, indices: np.ndarray | Sequence[int], columns: slice | None = None) -> np.ndarray:
        """Return these rows, (n, *row_shape), as a new array; `columns` cuts the first axis of `row_shape`."""
        assert self.lengths is None, "ragged rows are gathered by gather_ragged"
        shard_of, row_of = self.shard_of[indices], self.row_of[indices]
        sources = [shard.values if columns is None else shard.values[:, columns] for shard in self.shards]
        if len(sources) == 1:
            return np.ascontiguousarray(sources[0][row_of])
        values = np.empty((len(row_of), *sources[0].shape[1:]), dtype=self.dtype)
        # Row by row: grouped by shard, every row would be copied twice.
        for place, (which, row) in enumerate(zip(shard_of.tolist(), row_of.tolist(), strict=True)):
            values[place] = sources[which][row]
        return values

    def gather_ragged(self, indices: np.ndarray | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the items of these rows end to end, (sum of lengths, *row_shape), and the lengths, (n,)."""
        assert self.lengths is not None, "rows that are not ragged are gathered by gather"
        places = zip(self.shard_of[indices].tolist(), self.row_of[indices].tolist(), strict=True)
        parts = [_items(self.shards[which], row) for which, row in places]
        empty = np.empty((0, *self.row_shape), dtype=self.dtype)
        return np.concatenate(parts or [empty]), self.lengths[indices]


def stored_values(shards: Sequence[Shard], shard_of: np.ndarray, row_of: np.ndarray) -> StoredValues:
    """These rows of these shards, of which those that hold none of the rows are let go."""
    used = np.unique(shard_of) if len(shard_of) else np.zeros(1, dtype=np.int64)
    kept, shard_of = tuple(shards[which] for which in used.tolist()), np.searchsorted(used, shard_of)
    lengths = None if kept[0].offsets is None else np.empty(len(row_of), dtype=np.int64)
    for which, shard in enumerate(kept):
        if lengths is not None and shard.offsets is not None:
            here = shard_of == which
            lengths[here] = np.diff(shard.offsets)[row_of[here]]
    return StoredValues(shards=kept, shard_of=shard_of, row_of=row_of, lengths=lengths)


def find_rows(shards: Sequence[Shard], digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where digests (N, 16) lie: the shard, -1 if in none, and the row in it, both (N,)."""
    starts = np.cumsum([0, *(len(shard.digests) for shard in shards)])
    if not starts[-1] or not len(digests):
        return np.full(len(digests), -1), np.zeros(len(digests), dtype=np.int64)
    stored, wanted = as_keys(np.concatenate([shard.digests for shard in shards])), as_keys(digests)
    order = np.argsort(stored)
    ordered = stored[order]
    nearest = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    place = order[nearest]
    shard_of = np.searchsorted(starts, place, side="right") - 1
    row_of = place - starts[shard_of]
    return np.where(ordered[nearest] == wanted, shard_of, -1), row_of


def as_keys(digests: np.ndarray) -> np.ndarray:
    """Digests (N, 16) as N strings of fixed width, which numpy compares, sorts and searches faster than rows."""
    return np.ascontiguousarray(digests).view(f"S{DIGEST_BYTES}").reshape(-1)


def _items(shard: Shard, row: int) -> np.ndarray:
    assert shard.offsets is not None
    return shard.values[shard.offsets[row] : shard.offsets[row + 1]]
