"""Outputs of a frozen prefix kept in memory for one trial, where they have no place in the store.

That is so for weights that are drawn anew in every trial, and when the disk or the store's budget has no room.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from automl_tl.features.rows import ActivationRows, Rows, TokenActivationRows
from automl_tl.model.assemble import TransferModel
from automl_tl.plugin import Tokens

BATCH = 64
BUDGET = 1 << 30  # bytes


def keep_in_memory(
    model: TransferModel, rows: Rows, device: str, *, budget: int = BUDGET, deadline: float | None = None
) -> Rows | None:
    """Rows at the model's cut, or pooled features where nothing trains but the head; one pass over all rows.

    None when they do not fit into the budget of bytes or the deadline passes.
    """
    headless = model.cut == len(model.plans)
    return (
        _features(model, rows, device, budget, deadline)
        if headless
        else _activations(model, rows, device, budget, deadline)
    )


def _passes(rows: Rows, deadline: float | None) -> Iterator[np.ndarray | None]:
    """Indices of all rows, in order of length where rows have one; a last None once the deadline has passed."""
    order = np.arange(len(rows)) if rows.lengths is None else np.argsort(rows.lengths, kind="stable")
    for start in range(0, len(order), BATCH):
        if deadline is not None and time.time() > deadline:
            yield None
            return
        yield order[start : start + BATCH]


@torch.no_grad()
def _features(model: TransferModel, rows: Rows, device: str, budget: int, deadline: float | None) -> Rows | None:
    values = torch.empty(len(rows), model.feature_shift.numel())
    if values.numel() * values.element_size() > budget:
        return None
    for indices in _passes(rows, deadline):
        if indices is None:
            return None
        values[torch.from_numpy(indices)] = model.features(rows.batch(indices, device)).cpu()
    return ActivationRows(values, rows.lengths)


def _activations(model: TransferModel, rows: Rows, device: str, budget: int, deadline: float | None) -> Rows | None:
    """Whole outputs of the prefix; gives up once the budget cannot hold them."""
    lengths = rows.lengths
    values: Tensor | None = None
    offsets: np.ndarray | None = None
    for indices in _passes(rows, deadline):
        if indices is None:
            return None
        output = model.prefix(rows.batch(indices, device))
        hidden = output.values if isinstance(output, Tokens) else output
        if values is None:
            if isinstance(output, Tokens):
                assert lengths is not None
                offsets = np.concatenate([[0], np.cumsum(lengths)])
            shape = (len(rows), *hidden.shape[1:]) if offsets is None else (int(offsets[-1]), hidden.shape[-1])
            if int(np.prod(shape)) * hidden.element_size() > budget:
                return None
            layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
            values = torch.empty(shape, dtype=hidden.dtype, memory_format=layout)
        if offsets is None:
            values[torch.from_numpy(indices)] = hidden.cpu()
            continue
        for row, index in enumerate(indices):
            length = int(offsets[index + 1] - offsets[index])
            values[offsets[index] : offsets[index + 1]] = hidden[row, :length].cpu()
    assert values is not None
    return ActivationRows(values, lengths) if offsets is None else TokenActivationRows(values, offsets)
