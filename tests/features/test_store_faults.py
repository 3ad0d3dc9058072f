"""Killed builders, builders at once, damaged and full disks: with real processes and real files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from contextlib import contextmanager

import numpy as np
import pytest

from automl_tl.features.store import GIB, EntryKey, FeatureStore

KEY = EntryKey(kind="activations", inputs="image-64", backbone="net", weights="abc", cut=5, dtype="float32")
WIDTH = 5000

PROLOGUE = f"""
    import sys
    from pathlib import Path

    import numpy as np

    from automl_tl.features.store import EntryKey, FeatureStore, StoreFull

    store = FeatureStore(root=Path(sys.argv[1]), budget=1 << 30)
    entry = store.entry({KEY!r})

    def digests_of(numbers):
        return np.repeat(np.array(numbers, dtype=np.uint8)[:, None], 16, axis=1)

    def values_of(numbers):
        return np.array(numbers, dtype=np.float32)[:, None] + np.arange({WIDTH}, dtype=np.float32)

    def add(numbers):
        with entry.shard(len(numbers), row_shape=({WIDTH},)) as shard:
            shard.write(digests_of(numbers), values_of(numbers))

    def say(word):
        print(word, flush=True)
"""


def digests_of(numbers):
    return np.repeat(np.array(numbers, dtype=np.uint8)[:, None], 16, axis=1)


def values_of(numbers):
    return np.array(numbers, dtype=np.float32)[:, None] + np.arange(WIDTH, dtype=np.float32)


def add(entry, numbers):
    with entry.building(), entry.shard(len(numbers), row_shape=(WIDTH,)) as shard:
        shard.write(digests_of(numbers), values_of(numbers))


@pytest.fixture
def store(tmp_path):
    return FeatureStore(root=tmp_path / "features", budget=GIB)


@pytest.fixture
def entry(store):
    return store.entry(KEY)


@pytest.fixture
def process(store):
    """Return a context in which another process runs this code; both talk in lines."""

    @contextmanager
    def run(code):
        text = textwrap.dedent(PROLOGUE) + textwrap.dedent(code)
        command = [sys.executable, "-c", text, str(store.root)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            try:
                yield child
            finally:
                child.kill()

    return run


def hear(child):
    return child.stdout.readline().strip()


def tell(child):
    child.stdin.write("go on\n")
    child.stdin.flush()


def shard_names(entry):
    return sorted(path.name for path in (entry.directory / "shards").iterdir())


HALF_A_SHARD = f"""
    with entry.building():
        add([1, 2])
        with entry.shard(4, row_shape=({WIDTH},)) as shard:
            shard.write(digests_of([3, 4]), values_of([3, 4]))
            say("half")
            sys.stdin.readline()
"""


def test_a_killed_builder_leaves_nothing_that_reads_as_valid(store, entry, process):
    with process(HALF_A_SHARD) as child:
        assert hear(child) == "half"
        with entry.building(deadline=0.0) as held:
            assert not held
        child.kill()
        child.wait()
    assert len([name for name in shard_names(entry) if name.endswith(".partial")]) == 1
    assert entry.open(digests_of([3])) is None
    assert entry.missing(digests_of([1, 2, 3, 4, 5])).tolist() == [2, 3, 4]
    assert np.array_equal(entry.open(digests_of([2, 1])).gather([0, 1]), values_of([2, 1]))
    assert store.facts()[0].rows == 2

    with entry.building(deadline=0.0) as held:
        assert held
        assert len(shard_names(entry)) == 1
        assert not any(name.endswith(".partial") for name in shard_names(entry))
    add(entry, [3, 4, 5])
    assert np.array_equal(entry.open(digests_of([5, 1, 3])).gather([0, 1, 2]), values_of([5, 1, 3]))


def test_a_builder_killed_before_its_first_row_is_no_obstacle(entry, process):
    with process("with entry.building():\n    say('begun')\n    sys.stdin.readline()") as child:
        assert hear(child) == "begun"
        child.kill()
        child.wait()
    assert entry.open(digests_of([1])) is None
    add(entry, [1])
    assert entry.open(digests_of([1])) is not None


BUILDER = """
    numbers = [1, 2, 3]
    with entry.building(on_wait=lambda: say("waiting")) as held:
        missing = entry.missing(digests_of(numbers))
        say(f"computing {len(missing)}")
        if len(missing):
            sys.stdin.readline()
            add(np.array(numbers)[missing])
    say(float(entry.open(digests_of(numbers)).gather([2, 0]).sum()))
"""


def test_of_two_builders_one_computes_and_both_read(process):
    with process(BUILDER) as first, process(BUILDER) as second:
        children = [first, second]
        # Whoever comes first computes, and the other says that it waits.
        said = [hear(child) for child in children]
        assert sorted(said) == ["computing 3", "waiting"]
        builder, waiter = sorted(children, key=lambda child: said[children.index(child)])
        tell(builder)
        assert hear(waiter) == "computing 0"
        expected = str(float(values_of([3, 1]).sum()))
        assert [hear(builder), hear(waiter)] == [expected, expected]


def test_when_the_builder_is_killed_the_one_that_waits_builds(process):
    with process(HALF_A_SHARD) as first:
        assert hear(first) == "half"
        with process(BUILDER) as second:
            assert hear(second) == "waiting"
            first.kill()
            assert hear(second) == "computing 1"
            tell(second)
            assert hear(second) == str(float(values_of([3, 1]).sum()))


PARENT = """
    import subprocess
    child_code = sys.stdin.readline()
    with entry.building():
        numbers = [[1, 2], [3], [4, 5]]
        children = [subprocess.Popen([sys.executable, "-c", eval(child_code), sys.argv[1], str(n)]) for n in numbers]
        assert [child.wait() for child in children] == [0, 0, 0]
    say("done")
"""


def test_children_add_shards_while_their_parent_holds_the_lock(entry, process):
    child = textwrap.dedent(PROLOGUE) + "add(eval(sys.argv[2]))\n"
    with process(PARENT) as parent:
        parent.stdin.write(repr(child) + "\n")
        parent.stdin.flush()
        assert hear(parent) == "done"
    assert len(shard_names(entry)) == 3
    assert np.array_equal(entry.open(digests_of([5, 3, 1])).gather([0, 1, 2]), values_of([5, 3, 1]))


def damaged_entry(entry, damage):
    add(entry, [1, 2])
    (sound,) = shard_names(entry)
    add(entry, [3, 4])
    (name,) = set(shard_names(entry)) - {sound}
    damage(entry.directory / "shards" / name / "values.npy")
    return name


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def test_a_corrupt_shard_is_named_and_computed_again(entry):
    name = damaged_entry(entry, flip)
    assert entry.missing(digests_of([1, 2, 3, 4])).tolist() == []  # checksums are read only when asked for
    with entry.building():
        assert entry.check() == [f"shard {name[:4]}… of net, cut 5: checksum differs"]
        assert entry.missing(digests_of([1, 2, 3, 4])).tolist() == [2, 3]
        assert len(shard_names(entry)) == 1
    add(entry, [3, 4])
    with entry.building():
        assert entry.check() == []
    assert np.array_equal(entry.open(digests_of([4, 1])).gather([0, 1]), values_of([4, 1]))


def test_a_truncated_shard_is_absent_then_named_and_computed_again(entry):
    name = damaged_entry(entry, truncate)
    assert entry.open(digests_of([1, 3])) is None
    assert entry.open(digests_of([1, 2])) is not None
    assert entry.missing(digests_of([1, 2, 3, 4])).tolist() == [2, 3]
    add(entry, [3, 4])
    assert np.array_equal(entry.open(digests_of([4, 1])).gather([0, 1]), values_of([4, 1]))
    with entry.building():
        assert entry.check() == [f"shard {name[:4]}… of net, cut 5: a file is missing, truncated or not as written"]
        assert entry.check() == []
    assert len(shard_names(entry)) == 2


@pytest.mark.parametrize(
    ("key", "owner"),
    [
        (EntryKey(kind="pooled", inputs="image-64", backbone="net", dtype="float32"), "net, pooled features"),
        (EntryKey(kind="samples", inputs="image-64", dtype="float32"), "the samples prepared as image-64"),
    ],
)
def test_whose_shard_is_damaged_is_said_of_every_kind(store, key, owner):
    entry = store.entry(key)
    name = damaged_entry(entry, flip)
    with entry.building():
        assert entry.check() == [f"shard {name[:4]}… of {owner}: checksum differs"]


LIMITED_DISK = f"""
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * {WIDTH}, 64 * {WIDTH}))
    with entry.building():
        add([1, 2])
        try:
            with entry.shard(40, row_shape=({WIDTH},)) as shard:
                for number in range(40):
                    shard.write(digests_of([number]), values_of([number]))
        except StoreFull as error:
            say(error)
        add([3])
"""


def test_a_disk_that_takes_no_more_is_an_error_and_leaves_no_half_shard(entry, process):
    with process(LIMITED_DISK) as child:
        said = hear(child)
        assert child.wait() == 0
    assert re.fullmatch(
        r"the disk has no room for the features in .*: File too large; "
        r"free some space, or set cache\.budget_gib or cache\.directory",
        said,
    )
    assert len(shard_names(entry)) == 2
    assert entry.missing(digests_of([1, 2, 3, 4])).tolist() == [3]
    with entry.building():
        assert entry.check() == []


READER = """
    stored = entry.open(digests_of([1, 2, 3]))
    say("open")
    sys.stdin.readline()
    say(float(stored.gather([2, 0]).sum()))
    say(entry.open(digests_of([1, 2, 3])))
"""


def test_a_reader_goes_on_reading_what_is_evicted(store, entry, process):
    add(entry, [1, 2])
    add(entry, [3])
    with process(READER) as child:
        assert hear(child) == "open"
        assert FeatureStore(root=store.root, budget=1000).make_room(10, seconds=1e9)
        assert store.facts() == []
        tell(child)
        assert hear(child) == str(float(values_of([3, 1]).sum()))
        assert hear(child) == "None"


EVICTOR = """
    say("ready")
    while True:
        store.clear()
"""


def test_building_and_reading_survive_an_eviction_at_any_moment(store, entry, process):
    with process(EVICTOR) as child:
        assert hear(child) == "ready"
        evicted = 0
        while evicted < 10:
            with entry.building() as held:
                assert held
                if len(entry.missing(digests_of([1, 2]))):
                    evicted += 1
                    with entry.shard(2, row_shape=(WIDTH,)) as shard:
                        shard.write(digests_of([1, 2]), values_of([1, 2]))
                stored = entry.open(digests_of([2, 1]))
                assert np.array_equal(stored.gather([0, 1]), values_of([2, 1]))
            stored = entry.open(digests_of([2, 1]))
            if stored is not None:
                assert np.array_equal(stored.gather([0, 1]), values_of([2, 1]))


def test_shards_of_other_data_sets_are_not_read(tmp_path):
    """An entry holds the rows of every data set that was ever prepared so: a run checks its own."""
    entry = FeatureStore(root=tmp_path, budget=1 << 30).entry(
        EntryKey(kind="pooled", inputs="image-8", dtype="float32")
    )
    digests = np.arange(128, dtype=np.uint8).reshape(8, 16)
    with entry.building():
        for part in (digests[:4], digests[4:]):
            with entry.shard(4, row_shape=(2,)) as shard:
                shard.write(part, np.ones((4, 2), dtype=np.float32))
        for values in entry.directory.glob("shards/*/values.npy"):
            values.write_bytes(values.read_bytes()[:-1] + b"!")
        assert len(entry.check(digests[:2])) == 1
        assert entry.missing(digests).tolist() == [0, 1, 2, 3]
        assert len(entry.check(digests)) == 1
