from __future__ import annotations

import errno
import json
import shutil

import numpy as np
import pytest

from automl_tl.errors import RunError
from automl_tl.features import shards as module
from automl_tl.features.shards import (
    StoreFull,
    flaw_of,
    read_meta,
    read_shard,
    remove_partial_shards,
    remove_shard,
    shard_directories,
    write_shard,
)

FLOAT = np.dtype(np.float32)


def some_digests(n):
    return np.random.default_rng(0).integers(0, 256, (n, 16), dtype=np.uint8)


def write(folder, values, *, dtype=FLOAT, lengths=None, seconds=0.0):
    """Write one shard and return its directory and digests."""
    n = len(values) if lengths is None else len(lengths)
    digests = some_digests(n)
    before = set(shard_directories(folder))
    with write_shard(folder, n, dtype, values.shape[1:], lengths) as writer:
        writer.write(digests, values)
        writer.seconds = seconds
    (directory,) = set(shard_directories(folder)) - before
    return directory, digests


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16, np.uint16, np.float32])
@pytest.mark.parametrize("row_shape", [(), (3,), (2, 3, 4)])
def test_what_is_written_is_read(tmp_path, dtype, row_shape):
    values = np.random.default_rng(1).integers(0, 100, (5, *row_shape)).astype(dtype)
    directory, digests = write(tmp_path, values, dtype=np.dtype(dtype))
    shard = read_shard(directory, np.dtype(dtype))
    assert np.array_equal(shard.digests, digests)
    assert np.array_equal(shard.values, values)
    assert shard.values.dtype == dtype
    assert shard.row_shape == row_shape
    assert shard.offsets is None
    assert flaw_of(directory, np.dtype(dtype)) is None


def test_rows_come_in_parts_and_in_order(tmp_path):
    values, digests = np.arange(20, dtype=np.float32).reshape(10, 2), some_digests(10)
    with write_shard(tmp_path, 10, FLOAT, (2,), None) as writer:
        for part in (slice(0, 3), slice(3, 3), slice(3, 9), slice(9, 10)):
            writer.write(digests[part], values[part])
    (directory,) = shard_directories(tmp_path)
    assert np.array_equal(read_shard(directory, FLOAT).values, values)
    assert np.array_equal(read_shard(directory, FLOAT).digests, digests)
    assert flaw_of(directory, FLOAT) is None


def test_values_of_any_memory_order_are_stored_in_one(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(0, 2, 1)
    directory, _ = write(tmp_path, values)
    assert np.array_equal(read_shard(directory, FLOAT).values, values)


def test_numbers_of_numpy_are_numbers(tmp_path):
    n, width = np.array([3, 2])
    with write_shard(tmp_path, n, FLOAT, (width,), None) as writer:
        writer.write(some_digests(3), np.ones((3, 2), dtype=np.float32))
        writer.seconds = np.float32(1.5)
    (directory,) = shard_directories(tmp_path)
    assert read_shard(directory, FLOAT).values.shape == (3, 2)
    assert read_meta(directory).seconds == 1.5


def test_ragged_rows_lie_end_to_end(tmp_path):
    lengths = np.array([2, 0, 3])
    values, digests = np.arange(10, dtype=np.float32).reshape(5, 2), some_digests(3)
    with write_shard(tmp_path, 3, FLOAT, (2,), lengths) as writer:
        writer.write(digests[:2], values[:2])
        writer.write(digests[2:], values[2:])
    (directory,) = shard_directories(tmp_path)
    shard = read_shard(directory, FLOAT)
    assert shard.offsets.tolist() == [0, 2, 2, 5]
    assert np.array_equal(shard.values, values)
    assert flaw_of(directory, FLOAT) is None


def test_rows_that_are_all_empty_are_rows(tmp_path):
    directory, _ = write(tmp_path, np.empty((0, 4), dtype=np.float32), lengths=np.array([0, 0]))
    assert read_shard(directory, FLOAT).values.shape == (0, 4)


def test_a_shard_says_what_it_holds_and_what_it_cost(tmp_path):
    directory, _ = write(tmp_path, np.ones((4, 2), dtype=np.float32), seconds=2.5)
    meta = read_meta(directory)
    assert (meta.rows, meta.row_shape, meta.seconds) == (4, (2,), 2.5)
    assert json.loads((directory / "meta.json").read_text())["dtype"] == "float32"
    assert sorted(path.name for path in directory.iterdir()) == ["meta.json", "rows.npy", "values.npy"]
    assert np.array_equal(np.load(directory / "values.npy"), np.ones((4, 2)))


def test_a_shard_is_read_by_nobody_before_it_is_whole(tmp_path):
    with write_shard(tmp_path, 2, FLOAT, (), None) as writer:
        writer.write(some_digests(1), np.ones(1, dtype=np.float32))
        assert shard_directories(tmp_path) == []
        writer.write(some_digests(1), np.ones(1, dtype=np.float32))
        assert shard_directories(tmp_path) == []
    assert len(shard_directories(tmp_path)) == 1


def test_an_error_on_the_way_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), write_shard(tmp_path, 2, FLOAT, (), None) as writer:  # noqa: PT012
        writer.write(some_digests(2), np.ones(2, dtype=np.float32))
        raise KeyError("of the network")
    assert list(tmp_path.iterdir()) == []


def test_a_caller_s_own_trouble_with_a_disk_is_not_the_store_s(tmp_path):
    with pytest.raises(FileNotFoundError), write_shard(tmp_path, 2, FLOAT, (), None):
        raise FileNotFoundError
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_ended_early_is_refused(tmp_path):
    with (
        pytest.raises(ValueError, match="a shard of 3 rows ended after 2"),
        write_shard(tmp_path, 3, FLOAT, (), None) as writer,
    ):
        writer.write(some_digests(2), np.ones(2, dtype=np.float32))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "values",
    [np.ones((2, 3), np.float32), np.ones((1, 2), np.float32), np.ones((2, 2), np.float64), np.ones(4, np.float32)],
)
def test_rows_of_another_form_are_refused(tmp_path, values):
    with (
        pytest.raises(ValueError, match=r"expected float32 values of shape \(2, 2\), got"),
        write_shard(tmp_path, 2, FLOAT, (2,), None) as writer,
    ):
        writer.write(some_digests(2), values)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lengths", [None, np.array([1, 1])])
def test_more_rows_than_announced_are_refused(tmp_path, lengths):
    with (
        pytest.raises(ValueError, match="rows 0 to 3 of a shard of 2"),
        write_shard(tmp_path, 2, FLOAT, (), lengths) as writer,
    ):
        writer.write(some_digests(3), np.ones(3, dtype=np.float32))


def test_ragged_values_must_fit_their_lengths(tmp_path):
    with (
        pytest.raises(ValueError, match=r"expected float32 values of shape \(3, 2\)"),
        write_shard(tmp_path, 2, FLOAT, (2,), np.array([1, 2])) as writer,
    ):
        writer.write(some_digests(2), np.ones((2, 2), dtype=np.float32))


@pytest.mark.parametrize(("n_rows", "lengths"), [(0, None), (2, np.array([1]))])
def test_a_shard_has_rows_and_a_length_for_each(tmp_path, n_rows, lengths):
    with pytest.raises(ValueError, match="a shard of"), write_shard(tmp_path, n_rows, FLOAT, (), lengths):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def shard(tmp_path):
    """Return a ragged shard, which has all the files that there are."""
    values = np.arange(2000, dtype=np.float32).reshape(500, 4)
    return write(tmp_path, values, lengths=np.full(100, 5))[0]


FILES = pytest.mark.parametrize("name", ["values.npy", "rows.npy", "offsets.npy"])


@FILES
@pytest.mark.parametrize("place", [8, -20])
def test_a_flipped_bit_is_found(shard, name, place):
    """The first place lies in the header, the other among the values."""
    data = bytearray((shard / name).read_bytes())
    data[place] ^= 1
    (shard / name).write_bytes(data)
    assert flaw_of(shard, FLOAT) == "checksum differs"


def test_a_file_is_checked_in_parts(shard, monkeypatch):
    monkeypatch.setattr(module, "READ_BYTES", 100)
    assert flaw_of(shard, FLOAT) is None


@FILES
def test_a_truncated_file_is_seen_without_reading_it(shard, name):
    data = (shard / name).read_bytes()
    (shard / name).write_bytes(data[:-1])
    assert read_shard(shard, FLOAT) is None
    assert read_meta(shard) is None
    assert flaw_of(shard, FLOAT) == "a file is missing, truncated or not as written"


@FILES
def test_a_missing_file_is_seen(shard, name):
    (shard / name).unlink()
    assert read_shard(shard, FLOAT) is None
    assert flaw_of(shard, FLOAT) == "a file is missing, truncated or not as written"


@FILES
def test_a_header_that_is_none_makes_a_shard_unreadable(shard, name):
    data = (shard / name).read_bytes()
    (shard / name).write_bytes(bytes(128) + data[128:])
    assert read_shard(shard, FLOAT) is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "{}", '{"files": 3}', '{"files": {}}', '{"files": {"values.npy": 3}}', "\x00", "\ufffe"],
)
def test_a_meta_file_that_makes_no_sense_is_a_flaw(shard, text):
    (shard / "meta.json").write_text(text, encoding="utf-8")
    assert read_shard(shard, FLOAT) is None
    assert flaw_of(shard, FLOAT)


@pytest.mark.parametrize(
    ("name", "value"), [("row_shape", None), ("rows", "x"), ("seconds", None), ("files", {"x": {}})]
)
def test_a_meta_file_that_lacks_something_is_a_flaw(shard, name, value):
    meta = json.loads((shard / "meta.json").read_text())
    (shard / "meta.json").write_text(json.dumps(meta | {name: value}))
    assert read_meta(shard) is None
    assert read_shard(shard, FLOAT) is None
    assert flaw_of(shard, FLOAT)


@pytest.mark.parametrize(("name", "value"), [("rows", 99), ("row_shape", [2, 2])])
def test_a_meta_file_that_lies_is_a_flaw(shard, name, value):
    meta = json.loads((shard / "meta.json").read_text())
    (shard / "meta.json").write_text(json.dumps(meta | {name: value}))
    assert read_shard(shard, FLOAT) is None
    assert flaw_of(shard, FLOAT) == "it is not of the form this version writes"


def test_values_of_another_type_are_not_read(shard):
    assert read_shard(shard, np.dtype(np.int32)) is None


def test_a_shard_that_is_not_there_is_not_read(tmp_path):
    assert read_shard(tmp_path / "nowhere", FLOAT) is None
    assert shard_directories(tmp_path / "nowhere") == []


def test_a_shard_is_removed_at_once(shard, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *arguments, **options: None)  # killed before it was done
        remove_shard(shard)
    assert shard_directories(shard.parent) == []
    remove_partial_shards(shard.parent)
    assert list(shard.parent.iterdir()) == []


class FullDisk:
    """A file that takes so many writes."""

    def __init__(self, file, writes, error):
        self.file, self.writes, self.error = file, writes, error

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def write(self, data):
        self.writes -= 1
        if self.writes < 0:
            raise self.error
        return self.file.write(data)

    def close(self):
        self.file.close()
        if self.writes < 0:
            raise self.error


@pytest.mark.parametrize("writes", [0, 1, 2])
@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StoreFull, "no room for the features in .*: No space left"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), StoreFull, "set cache.budget_gib or cache.directory"),
        (OSError(errno.EIO, "Input/output error"), RunError, "cannot write the features in .*: Input/output error;"),
    ],
)
def test_a_failed_write_leaves_nothing_and_can_be_repeated(tmp_path, monkeypatch, writes, error, kind, message):
    opened = module.Path.open

    def open_full(path, mode="r", **options):
        file = opened(path, mode, **options)
        return FullDisk(file, writes, error) if mode == "wb" else file

    values = np.ones((4, 2), dtype=np.float32)
    with monkeypatch.context() as patch:
        patch.setattr(module.Path, "open", open_full)
        with (  # noqa: PT012
            pytest.raises(RunError, match=message) as caught,
            write_shard(tmp_path, 4, FLOAT, (2,), None) as writer,
        ):
            writer.write(some_digests(2), values[:2])
            writer.write(some_digests(2), values[2:])
    assert type(caught.value) is kind
    assert list(tmp_path.iterdir()) == []
    directory, _ = write(tmp_path, values)
    assert np.array_equal(read_shard(directory, FLOAT).values, values)


def test_a_full_disk_at_the_very_end_leaves_nothing(tmp_path, monkeypatch):
    def full(path, text, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.Path, "write_text", full)
    with pytest.raises(StoreFull):
        write(tmp_path, np.ones((4, 2), dtype=np.float32))
    assert list(tmp_path.iterdir()) == []


def test_an_entry_that_is_not_being_built_takes_no_shard(tmp_path):
    with pytest.raises(RunError, match=r"cannot write the features in .*nowhere: No such file"):
        write(tmp_path / "nowhere", np.ones((1, 2), dtype=np.float32))
