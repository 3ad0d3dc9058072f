from __future__ import annotations

import fcntl
import os
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl_tl.features.store import GIB, EntryKey, FeatureStore

ROW = 10_000  # bytes; what lies beside the values of an entry is small against it


def digests_of(n):
    return np.arange(16 * n, dtype=np.uint32).astype(np.uint8).reshape(n, 16) + np.arange(n, dtype=np.uint8)[:, None]


def key_of(name):
    return EntryKey(kind="pooled", inputs="image-64", backbone=name, dtype="uint8")


def build(store, name, *, rows, seconds, used=1000.0):
    """Make an entry of so many rows of 10,000 bytes, that took so long and was used then."""
    entry = store.entry(key_of(name))
    with entry.building(), entry.shard(rows, row_shape=(ROW,)) as shard:
        shard.write(digests_of(rows), np.full((rows, ROW), len(name), dtype=np.uint8))
        shard.seconds = seconds
    os.utime(entry.directory / "used", (used, used))
    return entry


def names(store):
    return {entry.key.backbone for entry in store.facts()}


@pytest.fixture
def store(tmp_path):
    """Return a store with room for 10 rows, which holds 7: per row, `poor` saves 1 s, `fair` 2 s and `rich` 5 s."""
    store = FeatureStore(root=tmp_path, budget=10 * ROW + ROW // 2)
    build(store, "fair", rows=3, seconds=6.0)
    build(store, "rich", rows=2, seconds=10.0)
    build(store, "poor", rows=2, seconds=2.0)
    return store


def test_while_there_is_room_nothing_goes(store):
    assert store.make_room(3 * ROW, seconds=0.0)
    assert names(store) == {"poor", "fair", "rich"}


@pytest.mark.parametrize(
    ("rows", "left"),
    [(4, {"fair", "rich"}), (5, {"fair", "rich"}), (6, {"poor", "rich"}), (8, {"rich"}), (9, set()), (10, set())],
)
def test_what_saves_least_for_its_size_goes_first(store, rows, left):
    assert store.make_room(rows * ROW, seconds=1e6)
    assert names(store) == left


def test_equals_go_by_the_time_of_their_last_use(tmp_path):
    store = FeatureStore(root=tmp_path, budget=6 * ROW + ROW // 2)
    for name, used in (("newer", 3000.0), ("older", 1000.0), ("amid", 2000.0)):
        build(store, name, rows=2, seconds=0.0, used=used)
    assert store.make_room(2 * ROW, seconds=0.0)
    assert names(store) == {"newer", "amid"}


def test_no_entry_goes_for_one_that_saves_less(store):
    assert not store.make_room(5 * ROW, seconds=5 * 0.5)
    assert names(store) == {"poor", "fair", "rich"}
    assert store.make_room(5 * ROW, seconds=5 * 1.5)
    assert names(store) == {"fair", "rich"}


def test_either_enough_can_go_or_nothing_goes(store):
    assert not store.make_room(8 * ROW, seconds=8 * 1.5)  # `poor` would go, but is not enough
    assert names(store) == {"poor", "fair", "rich"}


def test_more_than_the_budget_never_fits(store):
    assert not store.make_room(11 * ROW, seconds=1e9)
    assert names(store) == {"poor", "fair", "rich"}


def test_a_store_over_its_budget_shrinks_to_it(store):
    smaller = FeatureStore(root=store.root, budget=5 * ROW + ROW // 2)
    assert smaller.make_room(0, seconds=0.0)
    assert names(store) == {"fair", "rich"}


def test_what_is_to_be_kept_is_kept(store):
    assert store.make_room(4 * ROW, seconds=1e6, keep=[key_of("poor").digest()])
    assert names(store) == {"poor", "rich"}
    assert not store.make_room(9 * ROW, seconds=1e6, keep={key_of("poor").digest(), key_of("rich").digest()})


def test_what_is_being_built_is_kept(store):
    with store.entry(key_of("poor")).building():
        assert store.make_room(4 * ROW, seconds=1e6)
        assert names(store) == {"poor", "rich"}
        assert not store.make_room(9 * ROW, seconds=1e6)
        assert names(store) == {"poor", "rich"}
    assert store.make_room(9 * ROW, seconds=1e6)
    assert names(store) == set()


def test_a_small_entry_is_spared_when_a_large_one_must_go_anyway(tmp_path):
    store = FeatureStore(root=tmp_path, budget=8 * ROW + ROW // 2)
    build(store, "small", rows=1, seconds=1.0)
    build(store, "large", rows=6, seconds=12.0)
    assert store.make_room(5 * ROW, seconds=1e6)
    assert names(store) == {"small"}


def test_rows_that_are_half_written_take_room(store):
    entry = store.entry(key_of("new"))
    with entry.building(), entry.shard(3, row_shape=(ROW,)) as shard:
        shard.write(digests_of(3), np.zeros((3, ROW), dtype=np.uint8))
        assert not store.make_room(3 * ROW, seconds=0.0)


def test_an_entry_that_cannot_be_read_goes_first(store):
    directory = store.entry(key_of("rich")).directory
    (directory / "entry.json").write_text('{"format": 0}')
    assert [entry.key for entry in store.facts() if entry.name == directory.name] == [None]
    assert store.make_room(4 * ROW, seconds=0.0)
    assert names(store) == {"poor", "fair"}


def test_a_damaged_shard_saves_nothing(store):
    (values,) = store.entry(key_of("rich")).directory.glob("shards/*/values.npy")
    os.truncate(values, 2 * ROW)
    assert store.make_room(4 * ROW, seconds=0.0)
    assert names(store) == {"poor", "fair"}


def test_nothing_but_entries_is_counted_or_deleted(store):
    strangers = [store.root / "notes.txt", store.root / "sources" / "a" / "model", store.root / ("a" * 20) / "model"]
    for path in strangers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(5 * ROW))
    assert len(store.facts()) == 3
    assert store.make_room(3 * ROW, seconds=0.0)
    store.clear()
    assert store.facts() == []
    assert all(path.exists() for path in strangers)


def test_what_a_killed_eviction_left_is_deleted_by_the_next(store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *arguments, **options: None)
        assert store.make_room(4 * ROW, seconds=1e6)
    assert names(store) == {"fair", "rich"}
    assert len(list(store.root.glob("*.evicted"))) == 1
    assert store.make_room(0, seconds=0.0)
    assert list(store.root.glob("*.evicted")) == []
    assert names(store) == {"fair", "rich"}


def test_an_eviction_does_not_disturb_a_reader(store):
    entry = store.entry(key_of("poor"))
    stored = entry.open(digests_of(2))
    assert store.make_room(4 * ROW, seconds=1e6)
    assert not entry.directory.exists()
    assert np.array_equal(stored.gather([1, 0]), np.full((2, ROW), 4))
    assert entry.open(digests_of(2)) is None
    assert entry.missing(digests_of(2)).tolist() == [0, 1]


def test_what_was_evicted_can_be_built_again(store):
    store.clear()
    entry = build(store, "poor", rows=2, seconds=2.0)
    assert np.array_equal(entry.open(digests_of(2)).gather([0]), np.full((1, ROW), 4))


def test_a_lock_on_an_evicted_entry_is_no_lock(store, monkeypatch):
    """A builder opens the lock's file, and before it locks it, the entry is evicted: it must lock the next one."""
    entry = store.entry(key_of("poor"))
    flock, turns = fcntl.flock, []

    def evict_first(file, flags):
        if not turns:
            turns.append("evicted")
            entry.directory.rename(store.root / "elsewhere")
        flock(file, flags)

    monkeypatch.setattr("automl_tl.features.lock.fcntl.flock", evict_first)
    with entry.building() as held:
        assert held
        assert entry.directory.is_dir()
        with entry.building(deadline=0.0) as second:
            assert not second
    assert turns


def test_clear_deletes_what_is_chosen_and_says_how_much(store):
    before = sum(entry.n_bytes for entry in store.facts())
    cleared = store.clear(lambda entry: entry.key.backbone != "fair")
    assert {entry.key.backbone for entry in cleared.entries} == {"poor", "rich"}
    assert cleared.being_built == ()
    assert names(store) == {"fair"}
    assert cleared.n_bytes == before - sum(entry.n_bytes for entry in store.facts())


def test_clear_leaves_and_names_what_is_being_built(store):
    with store.entry(key_of("fair")).building():
        cleared = store.clear()
    assert [entry.key.backbone for entry in cleared.being_built] == ["fair"]
    assert names(store) == {"fair"}


def test_clear_of_nothing_makes_nothing(tmp_path):
    store = FeatureStore(root=tmp_path / "nowhere", budget=GIB)
    assert store.clear().n_bytes == 0
    assert not store.root.exists()


@settings(deadline=None, max_examples=25)
@given(
    entries=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 9)), max_size=5),
    budget=st.integers(0, 15),
    rows=st.integers(0, 12),
    seconds=st.integers(0, 100),
)
def test_the_rules_of_eviction_hold_in_any_store(tmp_path_factory, entries, budget, rows, seconds):
    store = FeatureStore(root=tmp_path_factory.mktemp("features"), budget=budget * ROW)
    for index, (size, worth) in enumerate(entries):
        build(store, f"{index}", rows=size, seconds=float(worth * size))
    before = {entry.name: entry for entry in store.facts()}
    fits = store.make_room(rows * ROW, seconds=float(seconds))
    left = {entry.name: entry for entry in store.facts()}
    gone = [entry for name, entry in before.items() if name not in left]
    room = store.budget - sum(entry.n_bytes for entry in left.values()) - rows * ROW
    may_go = [e for e in before.values() if e.seconds * rows * ROW <= seconds * e.n_bytes]
    assert all(entry in may_go for entry in gone)
    assert fits == (room >= 0)
    if fits:
        assert all(entry.n_bytes > room for entry in gone)  # none of them went needlessly
    else:
        assert gone == []
        assert sum(entry.n_bytes for entry in may_go) + room < 0
    shutil.rmtree(store.root)
