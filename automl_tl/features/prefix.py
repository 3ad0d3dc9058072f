"""Outputs of frozen prefixes, kept in a child's memory from one trial to the next.

Everything before a plan's cut is a constant function of the sample, so it is computed once per (backbone, weights, cut)
and not once per epoch and trial. Exact: `TransferModel.prefix` runs the same groups in the same state on both paths.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from automl_tl.features.rows import ActivationRows, Rows, TokenActivationRows, size_in_bytes
from automl_tl.model.assemble import TransferModel
from automl_tl.model.pooling import pool
from automl_tl.plugin import Tokens

BATCH = 64
Kept = ActivationRows | TokenActivationRows


@dataclass(slots=True)
class PrefixCache:
    """Least recently used outputs of frozen prefixes, within a budget of bytes."""

    budget: int = 1 << 30
    _kept: OrderedDict[Hashable, Kept] = field(default_factory=OrderedDict)

    def rows(self, model: TransferModel, rows: Rows, key: Hashable, device: str) -> Rows | None:
        """Rows that start at the model's cut, or None when they would not fit into the budget.

        `key` names the rows and the weights of the prefix; what the cut is, is added here. When nothing is trained but
        the head, pooled features are kept instead of whole activations.
        """
        pooled = model.cut == len(model.plans)
        whole_key = (key, "features" if pooled else "activations", model.cut)
        if whole_key in self._kept:
            self._kept.move_to_end(whole_key)
            return self._kept[whole_key]
        kept = _run_prefix(model, rows, device, pooled=pooled, budget=self.budget)
        if kept is None:
            return None
        self._kept[whole_key] = kept
        while sum(map(size_in_bytes, self._kept.values())) > self.budget:
            self._kept.popitem(last=False)
        return kept


def _run_prefix(model: TransferModel, rows: Rows, device: str, *, pooled: bool, budget: int) -> Kept | None:
    """One pass over all rows, in order of length where rows have one; gives up once the budget cannot hold."""
    lengths = rows.lengths
    order = np.arange(len(rows)) if lengths is None else np.argsort(lengths, kind="stable")
    values: Tensor | None = None
    offsets: np.ndarray | None = None
    for start in range(0, len(order), BATCH):
        indices = order[start : start + BATCH]
        output = model.prefix(rows.batch(indices, device))
        if pooled:
            output = pool(output)
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
