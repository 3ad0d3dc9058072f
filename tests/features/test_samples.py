from __future__ import annotations

import errno
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image

from automl_tl.data import ImageSamples, Samples, TableEncoder, TextSamples
from automl_tl.data.digests import digest_samples
from automl_tl.errors import DataError, RunError
from automl_tl.features import samples as module
from automl_tl.features import shards
from automl_tl.features.eviction import facts_of
from automl_tl.features.rows import Rows, TokenRows
from automl_tl.features.samples import (
    InputFormat,
    image_size_for,
    open_samples,
    prepare_samples,
    rows_in_memory,
    samples_key,
)
from automl_tl.features.shards import shard_directories
from automl_tl.features.store import Entry, FeatureStore, StoreFull
from automl_tl.plugin import Backbone, ImageInput, TextInput


class Characters:
    """A tokenizer whose tokens are characters, between a start and an end."""

    pad_id = 3

    def encode(self, texts):
        return [[1, *map(ord, text), 2] for text in texts]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Samples of one modality, a backbone that reads them, and where the store keeps what it reads."""

    samples: Samples
    backbone: Backbone
    layout: InputFormat
    store: FeatureStore

    @property
    def entry(self) -> Entry:
        return self.store.entry(samples_key(self.backbone, self.layout))

    def prepare(self, samples: Samples | None = None, **settings) -> None:
        samples = samples or self.samples
        prepare_samples(samples, digest_samples(samples), self.backbone, self.layout, self.entry, **settings)

    def open(self, samples: Samples | None = None) -> Rows | None:
        values = self.entry.open(digest_samples(samples or self.samples))
        return None if values is None else open_samples(values, self.backbone, Characters.pad_id)

    def in_memory(self, samples: Samples | None = None) -> Rows:
        return rows_in_memory(samples or self.samples, self.backbone, self.layout)


@pytest.fixture
def kinds(backbones, pictures, texts, wine, store):
    characters = replace(backbones["minilm_l6"], input=TextInput(tokenizer=Characters, identity="characters"))
    encoder = TableEncoder.fit(wine.train.samples.frame, ())
    found = {
        "image": (pictures, backbones["source_cnn"], InputFormat(size=16)),
        "text": (texts, characters, InputFormat()),
        "tabular": (wine.train.samples, backbones["source_mlp"], InputFormat(encoder=encoder)),
    }
    return {
        name: Kind(samples=samples, backbone=backbone, layout=layout, store=store)
        for name, (samples, backbone, layout) in found.items()
    }


EACH_KIND = pytest.mark.parametrize("kind", ["image", "text", "tabular"])


def batches(rows):
    batch = rows.batch(np.arange(len(rows)), "cpu")
    return [part.numpy() for part in (batch if isinstance(batch, tuple) else (batch,))]


def assert_same(rows, others):
    assert type(rows) is type(others)
    assert len(rows) == len(others)
    for one, other in zip(batches(rows), batches(others), strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)


@EACH_KIND
def test_rows_from_the_store_equal_rows_in_memory(kinds, kind):
    kind = kinds[kind]
    kind.prepare()
    assert_same(kind.open(), kind.in_memory())
    assert facts_of(kind.entry.directory).seconds > 0
    assert kind.entry.key.kind == "samples"


@EACH_KIND
def test_what_is_prepared_is_not_prepared_again(kinds, kind, monkeypatch):
    kind = kinds[kind]
    kind.prepare()
    monkeypatch.setattr(module, "_write", lambda *everything: pytest.fail("prepared again"))
    kind.prepare()
    order = np.random.default_rng(0).permutation(len(kind.samples))
    shuffled = kind.samples.take(order[:-1])  # nor in another order, nor where some are missing
    kind.prepare(shuffled)
    assert_same(kind.open(shuffled), kind.in_memory(shuffled))


@EACH_KIND
def test_of_samples_that_were_added_only_the_new_ones_are_prepared(kinds, kind, monkeypatch):
    kind = kinds[kind]
    kind.prepare(kind.samples.take(range(len(kind.samples) - 3)))
    written, write = [], module._write

    def count(samples, *everything):
        written.append(len(samples))
        write(samples, *everything)

    monkeypatch.setattr(module, "_write", count)
    kind.prepare()
    assert written == [3]
    assert_same(kind.open(), kind.in_memory())


def test_a_changed_sample_is_another_one(kinds):
    texts, table, pictures = (kinds[name] for name in ("text", "tabular", "image"))
    changed = {
        "text": (texts, replace(texts.samples, texts=(*texts.samples.texts[:-1], ""))),
        "tabular": (table, replace(table.samples, frame=table.samples.frame + 0.25)),
        "image": (pictures, replace(pictures.samples, sources=tuple(s + 1 for s in pictures.samples.sources))),
    }
    for kind, samples in changed.values():
        kind.prepare()
        assert kind.open(samples) is None
        kind.prepare(samples)
        assert_same(kind.open(samples), kind.in_memory(samples))
        assert_same(kind.open(), kind.in_memory())


def test_equal_samples_are_prepared_once(kinds):
    kind = kinds["text"]
    twice = TextSamples(texts=("ab", "c", "ab"), ids=("x", "y", "z"))
    kind.prepare(twice)
    assert facts_of(kind.entry.directory).rows == 2
    assert_same(kind.open(twice), kind.in_memory(twice))


@pytest.fixture
def files(tmp_path):
    """Return images that lie in files."""
    folder = tmp_path / "images"
    folder.mkdir()
    paths = tuple(folder / f"{index}.png" for index in range(3))
    for index, path in enumerate(paths):
        Image.new("RGB", (20, 12), (index, 100, 200)).save(path)
    return ImageSamples(sources=paths, ids=tuple(path.name for path in paths))


def test_image_files_are_decoded_in_order(kinds, files):
    kind, heard = kinds["image"], []
    kind.prepare(files, tick=heard.append)
    pixels = kind.open(files).pixels.gather(np.arange(3))
    assert pixels.shape == (3, 3, 16, 16)
    assert pixels.dtype == np.uint8
    assert pixels[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert pixels[0, :, 5, 5].tolist() == [0, 100, 200]
    assert heard == [0]


def test_many_samples_lie_in_several_shards(kinds, monkeypatch):
    monkeypatch.setattr(module, "SHARD_ROWS", 8)
    kind, heard = kinds["image"], []
    kind.prepare(tick=heard.append)
    assert len(shard_directories(kind.entry.directory / "shards")) == 3
    assert heard == [0, 8, 16]  # of all 20
    assert_same(kind.open(), kind.in_memory())


def test_backbones_share_samples_prepared_alike_and_only_those(backbones, texts):
    cnn, mobilenet, minilm = (backbones[name] for name in ("source_cnn", "mobilenet_v2", "minilm_l6"))
    assert InputFormat(size=64).key(cnn) == InputFormat(size=64).key(mobilenet) != InputFormat(size=96).key(cnn)
    other = replace(minilm, input=TextInput(tokenizer=Characters, identity="characters"))
    assert InputFormat().key(minilm) != InputFormat().key(other)
    encoders = [TableEncoder(("a",), (mean,), (1.0,), ()) for mean in (0.0, 1.0)]
    first, second = (InputFormat(encoder=encoder).key(backbones["source_mlp"]) for encoder in encoders)
    assert first != second


@EACH_KIND
def test_the_shape_of_one_input(kinds, kind):
    kind = kinds[kind]
    rows = kind.in_memory()
    expected = () if isinstance(rows, TokenRows) else tuple(batches(rows)[0].shape[1:])
    assert kind.layout.input_shape(kind.backbone) == expected


@pytest.mark.parametrize("wrong", ["image", "text", "tabular"])
def test_samples_of_another_modality_are_refused(kinds, wrong):
    backbone = kinds["image" if wrong != "image" else "text"].backbone
    kind = replace(kinds[wrong], backbone=backbone)
    expected = rf"'{backbone.name}' reads {backbone.input.modality} inputs, but the task's samples are {wrong}"
    with pytest.raises(DataError, match=expected):
        kind.prepare()
    with pytest.raises(DataError, match=expected):
        kind.in_memory()
    assert kind.open() is None


@pytest.mark.parametrize(
    ("error", "kind_of_error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StoreFull, "the disk has no room .*; free some space"),
        (OSError(errno.EROFS, "Read-only file system"), RunError, "cannot write .*: Read-only file system"),
    ],
)
@EACH_KIND
def test_a_failed_write_leaves_nothing_and_can_be_repeated(kinds, kind, monkeypatch, error, kind_of_error, message):
    kind = kinds[kind]

    def fail(*arguments):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_save", fail)
        with pytest.raises(kind_of_error, match=message):
            kind.prepare()
    assert kind.open() is None
    assert list((kind.entry.directory / "shards").iterdir()) == []
    kind.prepare()
    assert_same(kind.open(), kind.in_memory())


def test_a_full_disk_in_the_middle_of_the_images_is_an_error_and_not_a_crash(kinds, monkeypatch):
    """A memory map would end the process there; so the pixels must go through an ordinary file."""
    monkeypatch.setattr(module, "AT_ONCE", 2)
    kind, written = kinds["image"], []
    write = shards._Output.write

    def fill_up(output, data):
        written.append(len(data))
        if len(written) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(output, data)

    monkeypatch.setattr(shards._Output, "write", fill_up)
    with pytest.raises(StoreFull, match=r"the disk has no room .*cache\.budget_gib or cache\.directory"):
        kind.prepare()
    assert kind.open() is None
    assert list((kind.entry.directory / "shards").iterdir()) == []


def test_an_unreadable_image_costs_no_more_than_its_shard(kinds, files, monkeypatch):
    monkeypatch.setattr(module, "SHARD_ROWS", 1)
    kind, digests = kinds["image"], digest_samples(files)
    files.sources[1].write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"1\.png cannot be read"):
        prepare_samples(files, digests, kind.backbone, kind.layout, kind.entry)
    assert kind.entry.missing(digests).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("median", "wanted", "trained_at", "smallest", "size"),
    [
        (8, None, 224, 32, 64),  # the smallest size there is
        (28, None, 224, 32, 64),  # about twice
        (32, None, 224, 32, 64),
        (33, None, 224, 32, 96),
        (100, None, 224, 32, 224),  # never beyond what the weights were trained at
        (500, None, 224, 32, 224),  # larger than all sizes
        (28, None, 32, 16, 32),
        (500, None, 512, 32, 512),
        (28, None, 48, 80, 80),  # never below what the network can take
        (500, 48, 224, 32, 48),  # what is wanted
        (500, 300, 224, 32, 300),
        (500, 8, 224, 32, 32),
    ],
)
def test_the_size_at_which_images_are_seen(backbones, median, wanted, trained_at, smallest, size):
    backbone = replace(backbones["source_cnn"], input=ImageInput(size=trained_at, smallest=smallest))
    assert image_size_for(backbone, median, wanted) == size


def test_texts_go_through_the_tokenizer_whole(kinds):
    kind, samples = kinds["text"], TextSamples(texts=("ab", "", "c"), ids=("x", "y", "z"))
    kind.prepare(samples)
    rows = kind.open(samples)
    assert rows.lengths.tolist() == [4, 2, 3]
    assert rows.pad_id == 3
    assert rows.batch(np.array([0, 1]), "cpu").values.tolist() == [[1, ord("a"), ord("b"), 2], [1, 2, 3, 3]]
