"""Stored outputs on a GPU's side of the bus: in its memory within a stated share of it, else in pinned host memory.

A GPU computes a frozen prefix about as fast as a disk delivers its outputs, so there the disk must not be on the path
of training: rows are copied once a trial. On a CPU they stay mapped, and all slots share one copy in the page cache.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from automl_tl.features.rows import ActivationRows, Rows, StoredRows, StoredTokenRows, TokenActivationRows

CHUNK = 1024


def resident(rows: Rows, device: str, *, share: float, free: Callable[[str], int] | None = None) -> Rows:
    """Rows that need no disk: `rows` themselves on a CPU, or where nothing of them is stored.

    Parameters
    ----------
    share
        Of the device memory that is free now, that these rows may take.
    free
        Bytes of free memory of a device; None: asks CUDA.
    """
    if device == "cpu" and free is None:
        return rows
    if not isinstance(rows, StoredRows | StoredTokenRows):
        return rows
    room = share * (free or _free)(device)
    place = device if _bytes(rows) <= room else "cpu"
    return _copied(rows, place, pinned=place == "cpu" and device != "cpu")


def _free(device: str) -> int:
    return int(torch.cuda.mem_get_info(device)[0])


def _bytes(rows: StoredRows | StoredTokenRows) -> int:
    """Memory of the copy, which keeps the stored type."""
    first = rows.native(np.array([0]))
    items = int(rows.lengths.sum()) if isinstance(rows, StoredTokenRows) else len(rows)
    return items * first.shape[1:].numel() * first.element_size()


def _copied(rows: StoredRows | StoredTokenRows, place: str, *, pinned: bool) -> Rows:
    whole: Tensor | None = None
    done = 0
    lengths = rows.lengths if isinstance(rows, StoredTokenRows) else None
    total = int(lengths.sum()) if lengths is not None else len(rows)
    for start in range(0, len(rows), CHUNK):
        indices = np.arange(start, min(start + CHUNK, len(rows)))
        part = rows.native(indices)
        if whole is None:
            layout = torch.channels_last if part.ndim == 4 else torch.contiguous_format
            whole = torch.empty((total, *part.shape[1:]), dtype=part.dtype, device=place, memory_format=layout)
            whole = whole.pin_memory() if pinned else whole
        whole[done : done + len(part)] = part
        done += len(part)
    assert whole is not None
    if isinstance(rows, StoredTokenRows):
        return TokenActivationRows(whole, np.concatenate([[0], np.cumsum(rows.lengths)]))
    return ActivationRows(whole, rows.lengths)
