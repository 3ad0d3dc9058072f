"""Outputs of frozen prefixes, kept in a child's memory from one trial to the next.

Everything before a plan's cut is a constant function of the sample, so it is computed once per (backbone, weights, cut)
and not once per epoch and trial. Exact: `TransferModel.prefix` runs the same groups in the same state on both paths.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from automl_tl.features.rows import ActivationRows, Rows, TokenActivationRows, size_in_bytes
from automl_tl.model.assemble import TransferModel
from automl_tl.plugin import Tokens

BATCH = 64
Kept = ActivationRows | TokenActivationRows


@dataclass(slots=True)
class PrefixCache:
    """Least recently used outputs of frozen prefixes, within a budget of bytes."""

    budget: int = 1 << 30
    _kept: OrderedDict[Hashable, Kept] = field(default_factory=OrderedDict)

    def rows(
        self, model: TransferModel, rows: Rows, key: Hashable, device: str, *, deadline: float | None = None
    ) -> Rows | None:
        """Rows that start at the model's cut; None when they do not fit into the budget or the deadline passes.

        `key` names the rows and the weights of the prefix; what the cut is, is added here. When nothing is trained but
        the head, pooled features are kept instead of whole activations, and those of every earlier group with them:
        they are small, and a later trial that taps one of these finds its features there.
        """
        pooled = model.cut == len(model.plans)
        kind = "features" if pooled else "activations"
        if (key, kind, model.cut) not in self._kept:
            found: Mapping[int, Kept | None]
            if pooled:
                found = _pooled_taps(model, rows, device, deadline)
            else:
                found = {model.cut: _activations(model, rows, device, self.budget, deadline)}
            for cut, kept in found.items():
                if kept is not None and size_in_bytes(kept) <= self.budget:
                    self._kept[key, kind, cut] = kept
            while sum(map(size_in_bytes, self._kept.values())) > self.budget:
                self._kept.popitem(last=False)
        if (key, kind, model.cut) not in self._kept:
            return None
        self._kept.move_to_end((key, kind, model.cut))
        return self._kept[key, kind, model.cut]


def _passes(rows: Rows, deadline: float | None) -> Iterator[np.ndarray | None]:
    """Indices of all rows, in order of length where rows have one; a last None once the deadline has passed."""
    order = np.arange(len(rows)) if rows.lengths is None else np.argsort(rows.lengths, kind="stable")
    for start in range(0, len(order), BATCH):
        if deadline is not None and time.time() > deadline:
            yield None
            return
        yield order[start : start + BATCH]


def _pooled_taps(model: TransferModel, rows: Rows, device: str, deadline: float | None) -> dict[int, ActivationRows]:
    """Pooled features of every group before the cut, by the number of groups passed; one pass over all rows."""
    values: list[Tensor] = []
    for indices in _passes(rows, deadline):
        if indices is None:
            return {}
        taps = model.taps(rows.batch(indices, device))
        if not values:
            values = [torch.empty(len(rows), tap.shape[1], dtype=tap.dtype) for tap in taps]
        for whole, tap in zip(values, taps, strict=True):
            whole[torch.from_numpy(indices)] = tap.cpu()
    return {passed: ActivationRows(value, rows.lengths) for passed, value in enumerate(values, start=1)}


def _activations(model: TransferModel, rows: Rows, device: str, budget: int, deadline: float | None) -> Kept | None:
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
