"""Outputs of frozen layer groups for a trial: found in the store, or computed into it, or kept in memory.

One process computes an output while all others that want it wait and then read; what a killed one left is gone on with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from automl_tl.features.augment import augment
from automl_tl.features.network import CLEAN, TYPES, Network
from automl_tl.features.passes import OutOfRange, OutOfTime, Pass, compute
from automl_tl.features.rows import Rows, StoredRows, StoredTokenRows
from automl_tl.features.shards import StoreFull
from automl_tl.features.store import Entry, StoredValues
from automl_tl.model.pooling import Activation, Pooling
from automl_tl.plugin import Tokens


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The rows of one split as a network sees them, and what they are."""

    rows: Rows
    digests: np.ndarray  # (N, 16) uint8


@dataclass(frozen=True, kw_only=True)
class Source:
    """How outputs can be computed here that are not stored yet."""

    groups: Sequence[nn.Module]  # of the network, at least up to the cut, in eval mode
    device: str
    deadline: float | None = None
    also: tuple[int, ...] = ()  # cuts that other trials will want: the same pass serves them
    passed: list[int] = field(default_factory=list)  # rows that went through, one number a pass
    tick: Callable[[int], None] = lambda done: None  # hears how many rows are through


def pooled_rows(
    network: Network, samples: Samples, taps: Sequence[int], pooling: Pooling, *, view: str = CLEAN
) -> StoredRows | None:
    """The stored pooled outputs of these taps, counted from 1, side by side; None when they are not all stored."""
    for dtype in TYPES:
        values = network.pooled(dtype, view).open(samples.digests)
        if values is not None:
            columns = tuple(network.columns(tap, pooling) for tap in taps)
            return StoredRows(values, dtype, columns, samples.rows.lengths)
    return None


def rows_at(network: Network, samples: Samples, cut: int, *, view: str = CLEAN) -> Rows | None:
    """The stored whole outputs of the first `cut` groups; None when they are not all stored."""
    for dtype in TYPES:
        values = network.activations(cut, dtype, view).open(samples.digests)
        if values is not None:
            return _as_rows(values, dtype, samples)
    return None


def nearest(network: Network, samples: Samples, cut: int, *, view: str = CLEAN) -> tuple[Rows, int] | None:
    """The deepest stored outputs at or before a cut, and their cut; None when there are none."""
    for shallower in range(cut, 0, -1):
        rows = rows_at(network, samples, shallower, view=view)
        if rows is not None:
            return rows, shallower
    return None


def store_outputs(network: Network, samples: Samples, cut: int | None, source: Source, *, view: str = CLEAN) -> bool:
    """Store the outputs at a cut, None: the pooled ones of all groups, of those samples whose are not stored yet.

    Returns False, having stored nothing more, when the store has no room for them or the deadline passes.
    """
    for dtype in TYPES:
        try:
            with ExitStack() as locks:
                entries = _entries(network, cut, source.also, dtype, view)
                first = entries[cut]
                if not locks.enter_context(first.building(deadline=source.deadline)):
                    return False
                missing = first.missing(samples.digests)
                if not len(missing):
                    return True
                others = {
                    c: e for c, e in entries.items() if c != cut and _is_free_and_lacks(e, samples, missing, locks)
                }
                wanted = _within_budget(network, {cut: first, **others}, cut, samples, missing)
                if cut not in wanted:
                    return False
                _pass(network, samples, missing, wanted, source, view)
                return True
        except OutOfRange:
            continue
        except (OutOfTime, StoreFull):
            return False
    return False


def change_of(view: str) -> Callable[[Activation, np.ndarray], Activation] | None:
    """What makes a view of clean samples: the same change of the same sample every time; None for the clean view.

    A view is named by its augmentation and a number, as in `light-3`.
    """
    if view == CLEAN:
        return None
    how, _, number = view.partition("-")

    def change(batch: Activation, digests: np.ndarray) -> Activation:
        with torch.random.fork_rng(devices=[]):
            changed = []
            for row, digest in enumerate(digests):
                torch.manual_seed(int.from_bytes(digest[:7].tobytes(), "little") + int(number))
                changed.append(augment(_row(batch, row), "light" if how == "light" else "strong"))
        return _stacked(changed)

    return change


@dataclass(frozen=True)
class ChangedRows:
    """Clean samples as one view shows them."""

    rows: Rows
    digests: np.ndarray
    view: str

    @property
    def lengths(self) -> np.ndarray | None:
        """Tokens in each row, those that the view hides among them."""
        return self.rows.lengths

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: np.ndarray, device: str) -> Activation:
        """The rows at `indices`, changed."""
        batch, change = self.rows.batch(indices, device), change_of(self.view)
        return batch if change is None else change(batch, self.digests[indices])


def autocast(network: Network, device: str) -> Callable[[], AbstractContextManager[object]]:
    """The precision in which a network's passes run."""
    if network.compute == "bfloat16":
        return lambda: torch.autocast(device.partition(":")[0], torch.bfloat16)
    return nullcontext


def _entries(
    network: Network, cut: int | None, also: tuple[int, ...], dtype: str, view: str
) -> dict[int | None, Entry]:
    """The entry that is asked for and those that the same pass can serve."""
    cuts: list[int | None] = [cut, *(other for other in also if cut is None or other < cut)]
    return {each: network.entry(each, dtype, view) for each in cuts}


def _is_free_and_lacks(entry: Entry, samples: Samples, missing: np.ndarray, locks: ExitStack) -> bool:
    """Take an entry along if nobody builds it now and it lacks exactly the rows that are on their way."""
    if not locks.enter_context(entry.building(deadline=time.time())):
        return False
    return np.array_equal(entry.missing(samples.digests), missing)


def _within_budget(
    network: Network, entries: Mapping[int | None, Entry], cut: int | None, samples: Samples, missing: np.ndarray
) -> dict[int | None, Entry]:
    """Those that the store has room for, the one that is asked for first."""
    n_rows, lengths = len(missing), samples.rows.lengths
    tokens = 0.0 if lengths is None else float(lengths[missing].mean())
    admitted: dict[int | None, Entry] = {}
    keep = network.keep | {entry.key.digest() for entry in entries.values()}
    needed = 0
    for each in sorted(entries, key=lambda each: each != cut):
        values = network.width() if each is None else network.values_at(each, tokens)
        size = round(n_rows * values * np.dtype(entries[each].key.dtype).itemsize)
        if network.store.make_room(needed + size, seconds=n_rows * network.seconds_until(each), keep=keep):
            admitted[each] = entries[each]
            needed += size
    return admitted


def _pass(
    network: Network,
    samples: Samples,
    missing: np.ndarray,
    wanted: Mapping[int | None, Entry],
    source: Source,
    view: str,
) -> None:
    cuts = {cut: entry for cut, entry in wanted.items() if cut is not None}
    rows, start = samples.rows, 0
    if None not in wanted:
        stored = nearest(network, samples, min(cuts) - 1, view=view)
        if stored is not None:
            rows, start = stored
    order = Pass(
        groups=source.groups,
        rows=rows,
        digests=samples.digests,
        start=start,
        pooled=wanted.get(None),
        cuts=cuts,
        device=source.device,
        change=change_of(view) if start == 0 else None,
        precision=autocast(network, source.device),
    )
    source.passed.append(compute(order, missing, deadline=source.deadline, tick=source.tick))


def _as_rows(values: StoredValues, dtype: str, samples: Samples) -> Rows:
    if values.lengths is not None:
        return StoredTokenRows(values, dtype)
    return StoredRows(values, dtype, (), samples.rows.lengths)


def _row(batch: Activation, row: int) -> Activation:
    if isinstance(batch, Tokens):
        return Tokens(batch.values[row : row + 1], batch.mask[row : row + 1])
    return batch[row : row + 1]


def _stacked(batches: Sequence[Activation]) -> Activation:
    """Batches of one row each, of equal shape, as one batch."""
    tokens = [batch for batch in batches if isinstance(batch, Tokens)]
    if tokens:
        return Tokens(torch.cat([t.values for t in tokens]), torch.cat([t.mask for t in tokens]))
    return torch.cat([batch for batch in batches if not isinstance(batch, Tokens)])
