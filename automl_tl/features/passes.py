"""Passes: rows go through frozen layer groups once, and what comes out is stored.

One pass writes the pooled outputs of every group, the whole outputs at some cuts, or both; it goes no deeper than the
deepest of them and starts from the deepest output that is stored already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from automl_tl.errors import AutomlTlError
from automl_tl.features.rows import Rows, as_array
from automl_tl.features.shards import ShardWriter
from automl_tl.features.store import Entry
from automl_tl.model.pooling import Activation, pool
from automl_tl.plugin import Tokens

BATCH = 64
SHARD_ROWS = 4096
SHARD_BYTES = 256 << 20


class OutOfRange(AutomlTlError):
    """An output cannot be stored in the narrow type that was tried."""


class OutOfTime(AutomlTlError):
    """The deadline passed while rows were on their way; what was finished before is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What goes through, how far, and where its outputs go."""

    groups: Sequence[nn.Module]  # all of the network's, in eval mode
    rows: Rows
    digests: np.ndarray  # (N, 16) uint8, of the rows
    start: int = 0  # groups that the rows have passed already
    pooled: Entry | None = None  # of every group, which takes a pass from the samples themselves
    cuts: Mapping[int, Entry] = field(default_factory=dict)  # by the number of groups passed
    device: str = "cpu"
    change: Callable[[Activation, np.ndarray], Activation] | None = None  # of a view: batch, digests -> changed batch
    precision: Callable[[], AbstractContextManager[object]] = nullcontext


def compute(
    order: Pass, indices: np.ndarray, *, deadline: float | None = None, tick: Callable[[int], None] = lambda done: None
) -> int:
    """Pass the rows at `indices` and store their outputs; return how many rows went through.

    Every entry gets one shard for each block of rows, complete or not at all. `tick(done)`: rows that are through.

    Raises
    ------
    OutOfRange
        When an output is too large for its entry's type.
    OutOfTime
        When `deadline` passes.
    StoreFull
        When the disk is full.
    """
    done = 0
    for block in _blocks(order, indices):
        with ExitStack() as open_shards, torch.no_grad(), order.precision():
            began = time.perf_counter()
            writers: dict[int | None, ShardWriter] = {}
            for batch in _batches(block):
                if deadline is not None and time.time() > deadline:
                    raise OutOfTime("the deadline passed during a pass")
                for cut, output in _outputs(order, batch):
                    entry = order.pooled if cut is None else order.cuts[cut]
                    assert entry is not None
                    values, lengths = _array(output, entry.key.dtype)
                    if cut not in writers:
                        whole = None if lengths is None or order.rows.lengths is None else order.rows.lengths[block]
                        shard = entry.shard(len(block), row_shape=values.shape[1:], lengths=whole)
                        writers[cut] = open_shards.enter_context(shard)
                    writers[cut].write(order.digests[batch], values)
                done += len(batch)
                tick(done)
            took = time.perf_counter() - began
            for cut, writer in writers.items():
                # Pooled outputs alone would have taken as long; whole ones share what was passed for them.
                writer.seconds = took if cut is None else took / len(order.cuts)
    return done


def _blocks(order: Pass, indices: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of one shard each, texts in order of length, so that a batch's are alike."""
    if order.rows.lengths is not None:
        indices = indices[np.argsort(order.rows.lengths[indices], kind="stable")]
    yield from (
        np.array_split(indices, max(1, -(-len(indices) // _rows_per_shard(order, indices)))) if len(indices) else ()
    )


def _rows_per_shard(order: Pass, indices: np.ndarray) -> int:
    """Few enough that a killed pass loses little; found by passing one row."""
    if not order.cuts or not len(indices):
        return SHARD_ROWS
    with torch.no_grad(), order.precision():
        sizes = [
            _array(output, "float32")[0].nbytes for cut, output in _outputs(order, indices[-1:]) if cut is not None
        ]
    return int(np.clip(SHARD_BYTES // max(sizes, default=1), BATCH, SHARD_ROWS))


def _batches(block: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(block), BATCH):
        yield block[start : start + BATCH]


def _outputs(order: Pass, batch: np.ndarray) -> Iterator[tuple[int | None, Activation]]:
    """The outputs that are wanted of a batch, by cut; None: the pooled outputs of all groups, side by side."""
    activation = order.rows.batch(batch, order.device)
    if order.change is not None:
        activation = order.change(activation, order.digests[batch])
    pooled: list[Tensor] = []
    deepest = len(order.groups) if order.pooled is not None else max(order.cuts)
    for passed, group in enumerate(order.groups[order.start : deepest], start=order.start + 1):
        activation = group(activation)
        if order.pooled is not None:
            pooled.append(pool(activation, "mean_std").float())
        if passed in order.cuts:
            yield passed, activation
    if order.pooled is not None:
        yield None, torch.cat(pooled, 1)


def _array(output: Activation, dtype: str) -> tuple[np.ndarray, np.ndarray | None]:
    """What is stored of a batch: maps as (N, H, W, C), real tokens end to end, and how many a text has."""
    lengths = None
    if isinstance(output, Tokens):
        lengths = output.mask.sum(1).cpu().numpy()
        values = output.values[output.mask]  # row by row
    else:
        values = output.permute(0, 2, 3, 1).contiguous() if output.ndim == 4 else output
    array = as_array(values.cpu(), dtype)
    if not np.isfinite(array).all():
        raise OutOfRange(f"an output lies outside {dtype}'s range")
    return array, lengths
