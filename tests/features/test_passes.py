from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from automl_tl.features import passes as module
from automl_tl.features import shards
from automl_tl.features.eviction import facts_of
from automl_tl.features.passes import OutOfRange, OutOfTime, Pass, compute
from automl_tl.features.rows import ActivationRows, ArrayValues, StoredRows, StoredTokenRows, TokenRows
from automl_tl.features.shards import shard_directories
from automl_tl.features.store import EntryKey, StoreFull
from automl_tl.model.pooling import pool
from automl_tl.plugin import Tokens

N = 10


class Times(nn.Module):
    """A layer group that multiplies, and counts the rows it saw."""

    def __init__(self, factor):
        super().__init__()
        self.factor, self.seen = factor, []

    def forward(self, inputs):
        self.seen.append(len(inputs))
        return inputs * self.factor


class Embedded(nn.Module):
    """A layer group that gives each token two values."""

    def forward(self, tokens):
        ids = tokens.values.float()
        return Tokens(torch.stack([ids, 10 * ids], 2), tokens.mask)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A network of three groups, rows for it, and a place for what it puts out."""

    order: Pass
    digests: np.ndarray

    def compute(self, indices=None, **settings):
        return compute(self.order, np.arange(len(self.order.rows)) if indices is None else indices, **settings)

    def pooled(self):
        values = self.order.pooled.open(self.digests)
        return None if values is None else StoredRows(values, "float32").batch(np.arange(len(self.digests)), "cpu")

    def at(self, cut):
        entry = self.order.cuts[cut]
        values = entry.open(self.digests)
        if values is None:
            return None
        kind = StoredRows if values.lengths is None else StoredTokenRows
        return kind(values, entry.key.dtype).batch(np.arange(len(self.digests)), "cpu")

    def change(self, **changes):
        return replace(self, order=replace(self.order, **changes))


def entry_of(store, cut, dtype="float32"):
    """An empty entry, made ready to take shards."""
    entry = store.entry(EntryKey(kind="activations" if cut else "pooled", inputs="x", cut=cut or 0, dtype=dtype))
    with entry.building():
        return entry


def scene_of(store, rows, groups, cuts):
    digests = np.random.default_rng(0).integers(0, 256, (len(rows), 16), dtype=np.uint8)
    order = Pass(
        groups=groups,
        rows=rows,
        digests=digests,
        pooled=entry_of(store, None),
        cuts={cut: entry_of(store, cut) for cut in cuts},
    )
    return Scene(order=order, digests=digests)


@pytest.fixture
def maps(store):
    """Return a scene of maps (N, 2, 3, 4) that are multiplied by 2, 3 and 5, kept after the first and the last."""
    values = torch.randn(N, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    return scene_of(store, ActivationRows(values), [Times(2), Times(3), Times(5)], (1, 3))


@pytest.fixture
def texts(store):
    """Return a scene of texts of 1 to 10 tokens, the longest first."""
    lengths = np.arange(N, 0, -1)
    ids = ArrayValues(np.arange(lengths.sum(), dtype=np.int32), np.concatenate([[0], np.cumsum(lengths)]))
    return scene_of(store, TokenRows(ids, pad_id=0), [Embedded()], (1,))


def shards_of(entry):
    return shard_directories(entry.directory / "shards")


def test_one_pass_stores_all_that_is_wanted(maps):
    assert maps.compute() == N
    values = maps.order.rows.values
    torch.testing.assert_close(maps.at(1), 2 * values)
    torch.testing.assert_close(maps.at(3), 30 * values)
    expected = torch.cat([pool(factor * values, "mean_std") for factor in (2, 6, 30)], 1)
    torch.testing.assert_close(maps.pooled(), expected)
    assert [sum(group.seen) for group in maps.order.groups] == [N + 1] * 3  # one row more, to see how large outputs are


def test_a_pass_goes_no_deeper_than_it_must(maps):
    scene = maps.change(pooled=None, cuts={1: maps.order.cuts[1]})
    scene.compute()
    assert [sum(group.seen) for group in scene.order.groups] == [N + 1, 0, 0]


def test_a_pass_begins_where_its_rows_are(maps, store):
    maps.compute()
    begun = [sum(group.seen) for group in maps.order.groups]
    values = maps.order.cuts[1].open(maps.digests)
    scene = maps.change(pooled=None, cuts={2: entry_of(store, 2)}, rows=StoredRows(values, "float32"), start=1)
    scene.compute()
    torch.testing.assert_close(scene.at(2), 6 * maps.order.rows.values)
    passed = [sum(group.seen) - before for group, before in zip(maps.order.groups, begun, strict=True)]
    assert passed == [0, N + 1, 0]


def test_only_the_rows_that_are_asked_for_pass(maps):
    assert maps.compute(np.array([7, 2])) == 2
    entry = maps.order.cuts[3]
    assert sorted(set(range(N)) - set(entry.missing(maps.digests).tolist())) == [2, 7]
    assert maps.compute(np.array([], dtype=np.int64)) == 0


def test_many_rows_lie_in_several_shards(maps, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 3)
    monkeypatch.setattr(module, "SHARD_ROWS", 4)
    heard = []
    assert maps.compute(tick=heard.append) == N
    for entry in (maps.order.pooled, *maps.order.cuts.values()):
        assert len(shards_of(entry)) == 3
        assert facts_of(entry.directory).rows == N
        assert facts_of(entry.directory).seconds > 0
    assert heard == [3, 4, 7, 10]
    torch.testing.assert_close(maps.at(3), 30 * maps.order.rows.values)


def test_large_outputs_make_small_shards(maps, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(module, "SHARD_BYTES", 5 * 2 * 3 * 4 * 4)  # five rows
    maps.compute()
    assert len(shards_of(maps.order.cuts[3])) == 2
    assert len(shards_of(maps.order.pooled)) == 2  # every entry has the same shards


def test_real_tokens_are_stored_whatever_their_batches(texts, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 3)
    monkeypatch.setattr(module, "SHARD_ROWS", 4)
    monkeypatch.setattr(module, "SHARD_BYTES", 4 * 80)  # of the longest text, ten tokens of two values
    texts.compute()
    states, mask = texts.at(1)
    ids, expected_mask = texts.order.rows.batch(np.arange(N), "cpu")
    assert torch.equal(mask, expected_mask)
    assert torch.equal(states[mask][:, 0], ids[mask].float())
    assert torch.equal(states[mask][:, 1], 10 * ids[mask].float())
    torch.testing.assert_close(texts.pooled(), pool(Tokens(states, mask), "mean_std"))
    assert len(shards_of(texts.order.cuts[1])) == 3


def test_a_view_is_made_of_the_samples_as_they_are_known(maps):
    def change(batch, digests):
        return batch + torch.from_numpy(digests[:, 0].astype(np.float32))[:, None, None, None]

    scene = maps.change(change=change)
    scene.compute()
    by_digest = torch.from_numpy(maps.digests[:, 0].astype(np.float32))[:, None, None, None]
    torch.testing.assert_close(scene.at(1), 2 * (maps.order.rows.values + by_digest))


def test_a_deadline_that_has_passed_begins_nothing(maps):
    with pytest.raises(OutOfTime):
        maps.compute(deadline=1.0)
    assert maps.at(1) is None
    assert shards_of(maps.order.pooled) == []


def test_what_was_finished_before_the_deadline_is_stored(maps, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(module, "SHARD_ROWS", 4)
    moments = iter(range(100))
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: next(moments), perf_counter=lambda: 0.0))
    with pytest.raises(OutOfTime):
        maps.compute(deadline=2)  # in the middle of the second shard
    missing = maps.order.cuts[3].missing(maps.digests)
    assert 0 < len(missing) < N
    assert np.array_equal(missing, maps.order.pooled.missing(maps.digests))
    maps.compute(missing)
    torch.testing.assert_close(maps.at(3), 30 * maps.order.rows.values)


@pytest.mark.parametrize(
    ("dtype", "factor", "fits"),
    [("float16", 1.0, True), ("float16", 1e6, False), ("float32", 1e6, True), ("float32", float("nan"), False)],
)
def test_what_a_type_cannot_hold_is_noticed(maps, store, dtype, factor, fits):
    entry = entry_of(store, 2, dtype)
    scene = maps.change(groups=[Times(1), Times(factor)], pooled=None, cuts={2: entry})
    if fits:
        scene.compute()
        return
    with pytest.raises(OutOfRange, match=f"outside {dtype}'s range"):
        scene.compute()
    assert list((entry.directory / "shards").iterdir()) == []


def test_a_full_disk_leaves_nothing_of_a_shard(maps, monkeypatch):
    write = shards._Output.write

    def fill_up(output, data):
        if output.size > 200:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(output, data)

    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(shards._Output, "write", fill_up)
    with pytest.raises(StoreFull, match="the disk has no room"):
        maps.compute()
    for entry in (maps.order.pooled, *maps.order.cuts.values()):
        assert list((entry.directory / "shards").iterdir()) == []


def test_a_precision_is_that_of_the_whole_pass(maps):
    entered = []

    class Precision:
        def __enter__(self):
            entered.append("in")

        def __exit__(self, *error):
            entered.append("out")

    maps.change(precision=Precision).compute()
    assert entered == ["in", "out"] * 2  # to see how large outputs are, and for the only block


def test_gradients_are_not_recorded(maps):
    class Watched(nn.Module):
        def forward(self, inputs):
            assert not torch.is_grad_enabled()
            return inputs

    assert maps.change(groups=[Watched(), Watched(), Watched()]).compute() == N
