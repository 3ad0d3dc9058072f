from __future__ import annotations

import json
import os
import pickle
import shutil
import threading
import time
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl_tl.data.digests import digest_samples
from automl_tl.errors import RunError
from automl_tl.features import entry as module
from automl_tl.features.store import GIB, EntryKey, FeatureStore, default_budget, feature_root

KEY = EntryKey(kind="activations", inputs="image-64", backbone="net", weights="abc", cut=5, dtype="float32")


def digests_of(numbers):
    """Return the digests of samples that are numbers."""
    return np.array([list(int(number).to_bytes(16, "little")) for number in numbers], dtype=np.uint8).reshape(-1, 16)


def values_of(numbers, row_shape=(3, 2), dtype=np.float32):
    """Return what the network, so to say, gives for these samples."""
    numbers = np.asarray(numbers, dtype=np.int64).reshape(-1, *[1] * len(row_shape))
    return (7 * numbers + np.arange(int(np.prod(row_shape))).reshape(row_shape)).astype(dtype)


def add(entry, numbers, row_shape=(3, 2)):
    """Compute and add one shard."""
    with entry.shard(len(numbers), row_shape=row_shape) as shard:
        shard.write(digests_of(numbers), values_of(numbers, row_shape, entry.stored_dtype))
        shard.seconds = 1.0


def items_of(number):
    """Return the items of a ragged row: `number % 4` of them."""
    return values_of([number] * (number % 4), (2,))


def add_ragged(entry, numbers):
    lengths = np.array([number % 4 for number in numbers])
    with entry.shard(len(numbers), row_shape=(2,), lengths=lengths) as shard:
        shard.write(digests_of(numbers), np.concatenate([items_of(number) for number in numbers]))


@pytest.fixture
def store(tmp_path):
    return FeatureStore(root=tmp_path / "features", budget=GIB)


@pytest.fixture
def entry(store):
    """Return an entry that holds samples 0 to 9 in three shards."""
    entry = store.entry(KEY)
    with entry.building():
        for numbers in ([4, 2, 0], [9], [1, 3, 5, 6, 7, 8]):
            add(entry, numbers)
    return entry


# Keys.


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "pooled"},
        {"inputs": "image-96"},
        {"backbone": "other"},
        {"weights": "abd"},
        {"cut": 4},
        {"view": "light-1"},
        {"dtype": "bfloat16"},
        {"compute": "bfloat16"},
    ],
)
def test_whatever_changes_the_values_is_another_entry(store, entry, change):
    other = store.entry(replace(KEY, **change))
    assert other.directory != entry.directory
    assert other.open(digests_of([0])) is None
    assert other.missing(digests_of([0, 1])).tolist() == [0, 1]


def test_every_field_of_a_key_was_changed_above():
    assert {field.name for field in fields(EntryKey)} == {
        "kind", "inputs", "backbone", "weights", "cut", "view", "dtype", "compute"
    }  # fmt: skip


def test_another_format_of_the_store_is_another_entry(store, entry, monkeypatch):
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    assert store.entry(KEY).directory != entry.directory
    assert store.entry(KEY).open(digests_of([0])) is None
    assert entry.open(digests_of([0])) is None  # not even where a digest were the same


def test_the_digest_of_a_key_is_the_same_in_every_process():
    assert EntryKey(kind="samples", inputs="image-64", dtype="uint8").digest() == "f9ee9c5bd2a0b2515645"


def test_a_key_lies_readable_beside_its_values(entry):
    values = json.loads((entry.directory / "entry.json").read_text())
    assert values["format"] == module.FORMAT
    assert (values["backbone"], values["cut"], values["inputs"]) == ("net", 5, "image-64")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"kind": "samples"}, "prepared samples"),
        ({"kind": "pooled", "cut": 0}, "pooled features"),
        ({"kind": "pooled"}, "pooled features at cut 5"),
        ({}, "activations at cut 5"),
    ],
)
def test_a_key_says_what_is_kept(change, what):
    assert replace(KEY, **change).what == what


# Rows.


def test_rows_are_found_by_digest_in_whatever_shard_they_lie(entry):
    numbers = [8, 0, 9, 9, 4, 1]
    stored = entry.open(digests_of(numbers))
    assert len(stored) == 6
    assert (stored.row_shape, stored.dtype, stored.lengths) == ((3, 2), np.float32, None)
    assert stored.nbytes == 6 * 3 * 2 * 4
    assert np.array_equal(stored.gather(np.arange(6)), values_of(numbers))
    assert np.array_equal(stored.gather([5, 0, 5]), values_of([1, 8, 1]))
    assert stored.gather(np.array([], dtype=int)).shape == (0, 3, 2)


def test_columns_cut_the_first_axis_of_a_row(entry):
    for numbers in ([1, 3, 5], [0, 9, 1]):  # of one shard, and of several
        stored = entry.open(digests_of(numbers))
        for columns in (slice(1, 3), slice(0, 1), slice(None), slice(None, None, 2)):
            part = stored.gather([2, 0], columns)
            assert np.array_equal(part, values_of(numbers)[[2, 0]][:, columns])
            assert part.flags.c_contiguous


def test_what_is_gathered_is_one_s_own(entry):
    for numbers in ([1, 3], [0, 9]):
        stored = entry.open(digests_of(numbers))
        stored.gather([0, 1])[:] = -1
        assert np.array_equal(stored.gather([0, 1]), values_of(numbers))
        with pytest.raises(ValueError, match="read-only"):
            stored.shards[0].values[:] = -1


def test_no_samples_are_no_rows(entry, store):
    stored = entry.open(digests_of([]))
    assert (len(stored), stored.nbytes, stored.gather([]).shape) == (0, 0, (0, 3, 2))
    assert entry.missing(digests_of([])).tolist() == []
    assert store.entry(replace(KEY, cut=9)).open(digests_of([])) is None


def test_one_missing_row_and_nothing_is_opened(entry):
    assert entry.open(digests_of([1, 2, 10])) is None


def test_what_is_missing_is_named_once(entry):
    assert entry.missing(digests_of([11, 3, 10, 11, 12, 10])).tolist() == [0, 2, 4]
    assert entry.missing(digests_of([11])).dtype == np.int64
    assert entry.missing(digests_of(range(10))).tolist() == []


def test_added_samples_cost_no_more_than_themselves(entry):
    shards = {path: path.stat().st_mtime_ns for path in entry.directory.glob("shards/*/*")}
    numbers = list(range(13))
    assert entry.missing(digests_of(numbers)).tolist() == [10, 11, 12]
    with entry.building():
        add(entry, [10, 11, 12])
    assert np.array_equal(entry.open(digests_of(numbers)).gather(numbers), values_of(numbers))
    now = {path: path.stat().st_mtime_ns for path in entry.directory.glob("shards/*/*")}
    assert shards.items() < now.items()
    new = [path for path in now if path not in shards and path.name == "values.npy"]
    assert [np.load(path).shape for path in new] == [(3, 3, 2)]


def test_a_row_that_lies_in_two_shards_is_one_row(entry):
    with entry.building():
        add(entry, [2, 3])
    numbers = [3, 2, 1, 2]
    assert np.array_equal(entry.open(digests_of(numbers)).gather(range(4)), values_of(numbers))
    assert entry.missing(digests_of(numbers)).tolist() == []


def test_bfloat16_is_kept_as_bits(store):
    entry = store.entry(replace(KEY, dtype="bfloat16"))
    with entry.building():
        add(entry, [1, 2])
    assert entry.open(digests_of([2])).dtype == np.uint16
    assert np.array_equal(entry.open(digests_of([2])).gather([0]), values_of([2], dtype=np.uint16))


def test_samples_of_a_task_find_their_rows_in_any_order(store, texts):
    entry = store.entry(EntryKey(kind="samples", inputs="text-1", dtype="int32"))
    digests = digest_samples(texts)
    with entry.building(), entry.shard(len(texts), row_shape=()) as shard:
        shard.write(digests, np.arange(len(texts), dtype=np.int32))
    shuffled = [5, 2, 7, 0]
    assert entry.open(digest_samples(texts.take(shuffled))).gather(range(4)).tolist() == shuffled


def test_ragged_rows(store):
    entry = store.entry(KEY)
    with entry.building():
        add_ragged(entry, [5, 4, 3])
        add_ragged(entry, [6])
    numbers = [6, 4, 3, 3, 5]
    stored = entry.open(digests_of(numbers))
    assert stored.lengths.tolist() == [2, 0, 3, 3, 1]
    assert stored.nbytes == 9 * 2 * 4
    values, lengths = stored.gather_ragged([4, 1, 0])
    assert lengths.tolist() == [1, 0, 2]
    assert np.array_equal(values, np.concatenate([items_of(5), items_of(6)]))
    values, lengths = stored.gather_ragged([])
    assert (values.shape, values.dtype, lengths.shape) == ((0, 2), np.float32, (0,))


def test_rows_of_two_shapes_in_one_entry_are_an_error(entry):
    with entry.building():
        add(entry, [20], row_shape=(3, 3))
    with pytest.raises(RunError, match=r"are of several shapes; expected one; remove them with: automl-tl cache clear"):
        entry.open(digests_of([20]))


@settings(deadline=None, max_examples=25)
@given(
    batches=st.lists(st.lists(st.integers(0, 40), max_size=12), max_size=6),
    picks=st.lists(st.integers(0, 10**6), max_size=30),
    ragged=st.booleans(),
)
def test_any_sequence_of_additions_gathers_as_one_array(tmp_path_factory, batches, picks, ragged):
    root = tmp_path_factory.mktemp("features")
    entry = FeatureStore(root=root, budget=GIB).entry(KEY)
    seen = []
    for batch in batches:
        missing = entry.missing(digests_of(batch))
        new = [batch[index] for index in missing]
        assert new == [number for index, number in enumerate(batch) if number not in [*seen, *batch[:index]]]
        seen += new
        if new:
            with entry.building():
                (add_ragged if ragged else add)(entry, new)
    asked = [number for batch in batches for number in batch]
    stored = entry.open(digests_of(asked))
    if not asked:
        assert stored is None
    else:
        indices = np.array([pick % len(asked) for pick in picks], dtype=np.int64)
        if ragged:
            values, lengths = stored.gather_ragged(indices)
            expected = [items_of(asked[index]) for index in indices]
            assert np.array_equal(values, np.concatenate([np.empty((0, 2)), *expected]))
            assert lengths.tolist() == [len(items) for items in expected]
        else:
            assert np.array_equal(stored.gather(indices), values_of(asked)[indices])
            assert np.array_equal(stored.gather(indices, slice(1, 3)), values_of(asked)[indices, 1:3])
    shutil.rmtree(root)


# Building.


def test_an_entry_is_nothing_before_it_is_begun(store):
    entry = store.entry(KEY)
    assert entry.open(digests_of([1])) is None
    assert entry.missing(digests_of([1])).tolist() == [0]
    with pytest.raises(RunError, match="cannot write the features in"), entry.shard(1, row_shape=()):
        pass
    assert store.facts() == []
    assert not store.root.exists()


def test_values_without_a_key_are_not_read(entry):
    (entry.directory / "entry.json").unlink()
    assert entry.open(digests_of([1])) is None
    with entry.building():
        pass
    assert entry.open(digests_of([1])) is not None


def test_a_damaged_key_is_written_anew(entry):
    (entry.directory / "entry.json").write_text("{")
    assert entry.open(digests_of([1])) is None
    with entry.building():
        assert entry.open(digests_of([1])) is not None


@pytest.mark.parametrize("change", [{"kind": "else"}, {"cut": 6}, {"format": 99, "more": 1}])
def test_a_key_of_another_place_is_no_key(entry, store, change):
    values = json.loads((entry.directory / "entry.json").read_text())
    (entry.directory / "entry.json").write_text(json.dumps(values | change))
    assert entry.open(digests_of([1])) is None
    assert [facts.key for facts in store.facts()] == [None]


def test_a_place_that_cannot_be_written_is_an_error_of_the_run(tmp_path):
    (tmp_path / "file").touch()
    store = FeatureStore(root=tmp_path / "file", budget=GIB)
    with pytest.raises(RunError, match=r"cannot write the features in .*: Not a directory; choose another cache\.dir"):
        store.entry(KEY).building().__enter__()
    with pytest.raises(RunError, match=r"cannot write the features in .*; choose another cache\.directory"):
        store.make_room(1, seconds=1.0)
    assert store.facts() == []
    assert store.entry(KEY).open(digests_of([1])) is None


def test_a_second_builder_waits_for_the_first(entry):
    said, order = [], []

    def second():
        with entry.building(on_wait=lambda: said.append("waiting")) as held:
            order.append(("second", held))

    with entry.building() as held:
        thread = threading.Thread(target=second)
        thread.start()
        while not said:
            time.sleep(0.01)
        time.sleep(0.5)  # long enough to ask again
        order.append(("first", held))
    thread.join()
    assert said == ["waiting"]
    assert order == [("first", True), ("second", True)]


def test_a_builder_that_waited_long_enough_goes_without(entry):
    said = []
    with entry.building():
        with entry.building(deadline=time.time() - 1, on_wait=lambda: said.append("past")) as held:
            assert not held
        with entry.building(deadline=time.time() + 0.3, on_wait=lambda: said.append("soon")) as held:
            assert not held
    assert said == ["soon"]
    with entry.building(deadline=time.time() - 1) as held:
        assert held


def test_a_builder_that_has_not_the_lock_touches_nothing(entry):
    with entry.building(), entry.shard(1, row_shape=(3, 2)) as shard:
        with entry.building(deadline=0.0) as held:
            assert not held
        shard.write(digests_of([30]), values_of([30]))
    assert entry.missing(digests_of([30])).tolist() == []


def test_threads_add_shards_at_once(store):
    entry = store.entry(KEY)
    with entry.building():
        threads = [threading.Thread(target=add, args=(entry, range(10 * i, 10 * i + 10))) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert np.array_equal(entry.open(digests_of(range(80))).gather(range(80)), values_of(range(80)))


def test_stores_and_entries_cross_into_children(store, entry):
    assert pickle.loads(pickle.dumps(store)) == store
    assert pickle.loads(pickle.dumps(entry)).open(digests_of([1])) is not None


# Facts and places.


def test_facts_say_what_an_entry_cost_and_takes(store, entry):
    (facts,) = store.facts()
    assert (facts.key, facts.name, facts.rows, facts.seconds) == (KEY, KEY.digest(), 10, 3.0)
    files = [path for path in entry.directory.rglob("*") if path.is_file()]
    assert facts.n_bytes == sum(path.stat().st_size for path in files) > 10 * 3 * 2 * 4
    assert facts.seconds_per_gib == pytest.approx(3.0 * GIB / facts.n_bytes)


def test_opening_is_using(store, entry):
    os.utime(entry.directory / "used", (1000, 1000))
    assert store.facts()[0].last_used == 1000
    entry.missing(digests_of([1]))
    assert entry.open(digests_of([99])) is None
    assert store.facts()[0].last_used == 1000
    entry.open(digests_of([1]))
    assert store.facts()[0].last_used > time.time() - 100


def test_a_store_that_is_read_only_can_be_read(entry, monkeypatch):
    def refuse(path, **options):
        raise PermissionError

    monkeypatch.setattr(module.Path, "touch", refuse)
    assert entry.open(digests_of([1])) is not None


def test_the_store_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("AUTOML_TL_CACHE", str(tmp_path / "a"))
    assert feature_root() == tmp_path / "a" / "features"
    monkeypatch.delenv("AUTOML_TL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert feature_root() == tmp_path / "b" / "automl_tl" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert feature_root() == tmp_path / "c" / ".cache" / "automl_tl" / "features"


def test_the_budget_is_a_fifth_of_what_is_free_without_the_store(tmp_path, monkeypatch):
    asked = []

    def disk_usage(path):
        asked.append(path)
        return SimpleNamespace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    free = 10_000
    assert default_budget(tmp_path / "not" / "there") == 2000
    assert asked == [tmp_path]
    (tmp_path / "kept").write_bytes(bytes(500))
    assert default_budget(tmp_path) == 2100
    free = 10**15
    assert default_budget(tmp_path) == 50 * GIB
