from __future__ import annotations

import errno
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from automl_tl.config import DataConfig
from automl_tl.data import Split, TableEncoder, load_task
from automl_tl.data.digests import digest_samples
from automl_tl.errors import RunError
from automl_tl.features import samples
from automl_tl.features import task as module
from automl_tl.features.store import EntryKey
from automl_tl.features.task import lay_out_task, prepare_task


@pytest.fixture(scope="module")
def digits():
    return load_task(DataConfig(path="sklearn:digits", per_class=4), seed=0)


def silent(what, done, n):
    pass


@pytest.fixture
def prepared(digits, backbones, tmp_path, store):
    """Return the digits, prepared for the small network."""
    cnn = backbones["source_cnn"]
    laid_out = lay_out_task(digits, (cnn,), tmp_path / "run", store)
    prepare_task(laid_out, (cnn,), silent)
    return laid_out


def test_training_and_validation_are_prepared_and_the_test_split_stays_sealed(digits, backbones, tmp_path, store):
    cnn, heard = backbones["source_cnn"], []
    prepared = lay_out_task(digits, (cnn,), tmp_path / "run", store)
    assert list(tmp_path.iterdir()) == []  # laying out writes nothing
    prepare_task(prepared, (cnn,), lambda *facts: heard.append(facts))
    assert not digits.test.opened
    for name, split in (("train", digits.train), ("validation", digits.validation)):
        opened = prepared.files(cnn, name).open(cnn)
        assert len(opened.rows) == len(split)
        assert np.array_equal(opened.labels, split.labels)
        assert np.array_equal(opened.digests, digest_samples(split.samples))
        assert opened.groups is None
        assert opened.samples.rows is opened.rows
        assert (f"preparing {name} samples", 0, len(split)) in heard
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "development.npz",
        "train.npz",
        "validation.npz",
    ]


def test_two_backbones_of_one_size_share_the_samples(digits, backbones, tmp_path, store):
    both = (backbones["source_cnn"], backbones["mobilenet_v2"])
    shared = lay_out_task(digits, both, tmp_path, store, image_size=48)
    own = lay_out_task(digits, both, tmp_path, store)
    assert shared.files(both[0], "train") == shared.files(both[1], "train")
    assert own.files(both[0], "train").entry != own.files(both[1], "train").entry


def test_a_second_run_prepares_nothing(digits, backbones, tmp_path, store, prepared, monkeypatch):
    monkeypatch.setattr(samples, "_write", lambda *everything: pytest.fail("prepared again"))
    cnn = backbones["source_cnn"]
    again = lay_out_task(digits, (cnn,), tmp_path / "again", store)
    prepare_task(again, (cnn,), silent)
    indices = np.arange(len(digits.train))
    pixels = [each.files(cnn, "train").open(cnn).rows.pixels.gather(indices) for each in (prepared, again)]
    assert np.array_equal(*pixels)


def test_a_table_is_prepared_for_its_run_alone(wine, backbones, tmp_path, store):
    """Its encoding is fitted on the training rows, so it is another one in every run with other rows."""
    mlp = backbones["source_mlp"]
    prepared = lay_out_task(wine, (mlp,), tmp_path / "run", store)
    prepare_task(prepared, (mlp,), silent)
    assert prepared.store.root == tmp_path / "run" / "store"
    assert not store.root.exists()
    opened = prepared.files(mlp, "train").open(mlp)
    encoder = prepared.formats[mlp.name].encoder
    values = opened.rows.batch(np.arange(len(opened.rows)), "cpu").numpy()
    assert np.array_equal(values, encoder.transform(wine.train.samples.frame))


def test_the_interface_is_what_the_model_takes_and_puts_out(digits, wine, backbones, tmp_path, store):
    cnn, mlp = backbones["source_cnn"], backbones["source_mlp"]
    interface = lay_out_task(digits, (cnn,), tmp_path, store, image_size=24).interface(cnn)
    assert (interface.input_shape, interface.n_outputs) == ((3, 24, 24), 10)
    interface = lay_out_task(wine, (mlp,), tmp_path, store).interface(mlp)
    assert (interface.input_shape, interface.n_outputs) == ((13,), 3)


def test_a_table_is_scaled_by_the_source_task_where_there_is_one(wine, backbones, tmp_path, store):
    mlp = backbones["source_mlp"]
    own = lay_out_task(wine, (mlp,), tmp_path, store).formats[mlp.name].encoder
    assert own == TableEncoder.fit(wine.train.samples.frame, ())
    source = TableEncoder(own.numbers, tuple(mean + 1 for mean in own.means), own.deviations, ())
    prepared = lay_out_task(wine, (mlp,), tmp_path, store, encoder=source)
    prepare_task(prepared, (mlp,), silent)
    rows = prepared.files(mlp, "train").open(mlp).rows
    values = rows.batch(np.arange(len(rows)), "cpu").numpy()
    assert np.array_equal(values, source.transform(wine.train.samples.frame))


def test_groups_go_along(backbones, tmp_path, store):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=60), "y": rng.normal(size=60), "who": np.repeat(np.arange(20), 3)})
    frame["label"] = np.arange(60) % 2
    frame.to_csv(tmp_path / "table.csv", index=False)
    task = load_task(DataConfig(path=str(tmp_path / "table.csv"), label="label", group="who"), seed=0)
    mlp = backbones["source_mlp"]
    prepared = lay_out_task(task, (mlp,), tmp_path / "run", store)
    prepare_task(prepared, (mlp,), silent)
    opened = prepared.files(mlp, "train").open(mlp)
    assert opened.groups.shape == opened.labels.shape
    assert np.array_equal(opened.groups, task.train.groups)


def changes(split):
    """What may happen to a data set between two sittings of a run."""
    n = len(split.samples)
    images = split.samples.sources
    return {
        "a label": replace(split, labels=np.concatenate([split.labels[1:], split.labels[:1]])),
        "a sample": replace(split, samples=replace(split.samples, sources=(images[0] + 1, *images[1:]))),
        "their order": Split(samples=split.samples.take([1, 0, *range(2, n)]), labels=split.labels, groups=None),
        "one is gone": Split(samples=split.samples.take(range(1, n)), labels=split.labels[1:], groups=None),
    }


@pytest.mark.parametrize("what", ["a label", "a sample", "their order", "one is gone"])
def test_a_run_goes_on_with_the_data_it_began_with(prepared, digits, what):
    prepared.note("train", digits.train)
    with pytest.raises(RunError, match=r"the data changed since .*train\.npz was written, .*start a new run"):
        prepared.note("train", changes(digits.train)[what])


@pytest.mark.parametrize("what", ["a label", "a sample", "their order", "one is gone"])
def test_a_split_has_a_digest_of_all_that_it_is(prepared, digits, backbones, tmp_path, what):
    cnn = backbones["source_cnn"]
    other = replace(prepared, directory=tmp_path / "other")
    other.note("train", changes(digits.train)[what])
    assert other.files(cnn, "train").digest() != prepared.files(cnn, "train").digest()
    same = replace(prepared, directory=tmp_path / "same")
    same.note("train", digits.train)
    assert same.files(cnn, "train").digest() == prepared.files(cnn, "train").digest()
    assert np.array_equal(same.files(cnn, "train").labels(), digits.train.labels)


def test_another_preparation_has_another_digest(prepared, digits, backbones):
    cnn = backbones["source_cnn"]
    larger = lay_out_task(digits, (cnn,), prepared.directory, prepared.store, image_size=48)
    assert larger.files(cnn, "train").digest() != prepared.files(cnn, "train").digest()


def test_samples_that_the_cache_may_never_hold_are_an_error_at_once(digits, backbones, tmp_path, store):
    """Those of the sealed test split among them: a search must not end for want of room."""
    cnn = backbones["source_cnn"]
    needed = (len(digits.train) + len(digits.validation) + len(digits.test)) * 3 * 32 * 32
    for budget, fits in ((needed - 1, False), (needed, True)):
        prepared = lay_out_task(digits, (cnn,), tmp_path / str(budget), replace(store, budget=budget))
        if fits:
            prepare_task(prepared, (cnn,), silent)
        else:
            with pytest.raises(RunError, match=r"samples of digits take .* GiB, but the cache may hold .*budget_gib"):
                prepare_task(prepared, (cnn,), silent)
            assert not store.root.exists()


def test_samples_take_the_place_of_what_other_runs_left(digits, backbones, tmp_path, store):
    cnn, mobilenet = backbones["source_cnn"], backbones["mobilenet_v2"]
    other = store.entry(EntryKey(kind="activations", inputs="x", dtype="uint8"))
    with other.building(), other.shard(1, row_shape=(10 << 20,)) as shard:
        shard.write(np.zeros((1, 16), dtype=np.uint8), np.zeros((1, 10 << 20), dtype=np.uint8))
        shard.seconds = 1e6  # dear, but not needed to go on
    n = len(digits.train) + len(digits.validation) + len(digits.test)
    tight = replace(store, budget=n * 3 * (64 * 64 + 32 * 32) + 200_000)
    prepared = lay_out_task(digits, (cnn,), tmp_path / "run", tight)
    large = lay_out_task(digits, (mobilenet,), tmp_path / "run", tight, image_size=64)
    for each, backbone in ((prepared, cnn), (large, mobilenet)):
        prepare_task(each, (backbone,), silent)
    assert not other.directory.exists()
    assert sum(facts.n_bytes for facts in tight.facts()) <= tight.budget
    assert prepared.files(cnn, "train").open(cnn).rows
    assert prepared.entries != large.entries


def test_samples_that_were_evicted_are_missed_in_one_sentence(prepared, backbones):
    files = prepared.files(backbones["source_cnn"], "train")
    shutil.rmtree(files.entry.directory)
    with pytest.raises(RunError, match=r"samples of train are no longer in the cache .*resume .*cache\.budget_gib"):
        files.open(backbones["source_cnn"])


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"PK\x03\x04 half")])
def test_labels_that_cannot_be_read_are_named(prepared, backbones, damage):
    files = prepared.files(backbones["source_cnn"], "train")
    damage(files.facts)
    with pytest.raises(RunError, match=r"train\.npz is missing or damaged .*start a new run"):
        files.labels()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"no space is left on the disk for .*train\.npz; free some"),
        (OSError(errno.EROFS, "Read-only file system"), r"cannot write .*train\.npz: Read-only file system"),
    ],
)
def test_labels_that_cannot_be_written_are_an_error(digits, backbones, tmp_path, store, monkeypatch, error, message):
    prepared = lay_out_task(digits, (backbones["source_cnn"],), tmp_path, store)

    def fail(*arguments, **facts):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module.np, "savez", fail)
        with pytest.raises(RunError, match=message):
            prepared.note("train", digits.train)
    prepared.note("train", digits.train)
