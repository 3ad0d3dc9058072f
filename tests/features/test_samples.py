from __future__ import annotations

import errno
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from automl_tl.data import ImageSamples, TableEncoder, TextSamples
from automl_tl.errors import DataError, RunError
from automl_tl.features import samples as module
from automl_tl.features.rows import TokenRows
from automl_tl.features.samples import (
    InputFormat,
    image_size_for,
    open_samples,
    prepare_samples,
    rows_in_memory,
    write_labels,
)
from automl_tl.plugin import ImageInput, TextInput


class Characters:
    """A tokenizer whose tokens are characters, between a start and an end."""

    pad_id = 3

    def encode(self, texts):
        return [[1, *map(ord, text), 2] for text in texts]


@pytest.fixture
def kinds(backbones, pictures, texts, wine):
    """Return (samples, backbone, layout) of each modality."""
    text_input = TextInput(tokenizer=Characters, identity="characters")
    encoder = TableEncoder.fit(wine.train.samples.frame, ())
    return {
        "image": (pictures, backbones["source_cnn"], InputFormat(size=16)),
        "text": (texts, replace(backbones["minilm_l6"], input=text_input), InputFormat()),
        "tabular": (wine.train.samples, backbones["source_mlp"], InputFormat(encoder=encoder)),
    }


EACH_KIND = pytest.mark.parametrize("kind", ["image", "text", "tabular"])


def batches(rows):
    batch = rows.batch(np.arange(len(rows)), "cpu")
    return [part.numpy() for part in (batch if isinstance(batch, tuple) else (batch,))]


@EACH_KIND
def test_rows_from_files_equal_rows_in_memory(kinds, kind, tmp_path):
    samples, backbone, layout = kinds[kind]
    written = open_samples(prepare_samples(samples, backbone, layout, tmp_path / "a" / "b"), backbone)
    direct = rows_in_memory(samples, backbone, layout)
    assert type(written) is type(direct)
    assert len(written) == len(direct) == len(samples)
    for from_files, from_memory in zip(batches(written), batches(direct), strict=True):
        assert from_files.dtype == from_memory.dtype
        assert np.array_equal(from_files, from_memory)


@EACH_KIND
def test_what_is_prepared_is_not_prepared_again(kinds, kind, tmp_path, monkeypatch):
    samples, backbone, layout = kinds[kind]
    directory = prepare_samples(samples, backbone, layout, tmp_path / "x")
    monkeypatch.setattr(module, "_write", lambda *everything: pytest.fail("written again"))
    assert prepare_samples(samples, backbone, layout, directory) == directory
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@EACH_KIND
def test_other_samples_are_not_taken_for_these(kinds, kind, tmp_path):
    samples, backbone, layout = kinds[kind]
    prepare_samples(samples, backbone, layout, tmp_path / "x")
    for other in (samples.take(range(1, len(samples))), samples.take([1, 0, *range(2, len(samples))])):
        with pytest.raises(RunError, match=r"the data changed since .*x was written; .*start a new run"):
            prepare_samples(other, backbone, layout, tmp_path / "x")


def test_changed_values_under_the_same_names_are_noticed(kinds, tmp_path):
    texts, backbone, layout = kinds["text"]
    prepare_samples(texts, backbone, layout, tmp_path / "text")
    with pytest.raises(RunError, match="the data changed"):
        prepare_samples(replace(texts, texts=(*texts.texts[:-1], "")), backbone, layout, tmp_path / "text")
    table, backbone, layout = kinds["tabular"]
    prepare_samples(table, backbone, layout, tmp_path / "table")
    with pytest.raises(RunError, match="the data changed"):
        prepare_samples(replace(table, frame=table.frame + 0.25), backbone, layout, tmp_path / "table")
    pictures, backbone, layout = kinds["image"]
    prepare_samples(pictures, backbone, layout, tmp_path / "image")
    changed = tuple(source + 1 for source in pictures.sources)
    with pytest.raises(RunError, match="the data changed"):
        prepare_samples(replace(pictures, sources=changed), backbone, layout, tmp_path / "image")


@pytest.fixture
def files(tmp_path):
    """Return images that lie in files."""
    paths = tuple(tmp_path / f"{index}.png" for index in range(3))
    for index, path in enumerate(paths):
        Image.new("RGB", (20, 12), (index, 100, 200)).save(path)
    return ImageSamples(sources=paths, ids=tuple(path.name for path in paths))


def test_a_changed_image_file_is_noticed(files, backbones, tmp_path):
    prepare_samples(files, backbones["source_cnn"], InputFormat(size=16), tmp_path / "x")
    Image.new("RGB", (20, 13)).save(files.sources[1])
    os.utime(files.sources[1], ns=(1, 1))
    with pytest.raises(RunError, match="the data changed"):
        prepare_samples(files, backbones["source_cnn"], InputFormat(size=16), tmp_path / "x")


def test_image_files_are_decoded_in_order(files, backbones, tmp_path):
    heard = []
    directory = prepare_samples(files, backbones["source_cnn"], InputFormat(size=16), tmp_path / "x", tick=heard.append)
    pixels = open_samples(directory, backbones["source_cnn"]).pixels
    assert pixels.shape == (3, 3, 16, 16)
    assert pixels.dtype == np.uint8
    assert pixels[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert pixels[0, :, 5, 5].tolist() == [0, 100, 200]
    assert isinstance(pixels, np.memmap)
    assert heard == [0]


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
    samples, backbone, layout = kinds[kind]
    rows = rows_in_memory(samples, backbone, layout)
    expected = () if isinstance(rows, TokenRows) else tuple(batches(rows)[0].shape[1:])
    assert layout.input_shape(backbone) == expected


@pytest.mark.parametrize("wrong", ["image", "text", "tabular"])
def test_samples_of_another_modality_are_refused(kinds, wrong, tmp_path):
    backbone = kinds["image" if wrong != "image" else "text"][1]
    samples, _, layout = kinds[wrong]
    expected = rf"'{backbone.name}' reads {backbone.input.modality} inputs, but the task's samples are {wrong}"
    with pytest.raises(DataError, match=expected):
        prepare_samples(samples, backbone, layout, tmp_path / "x")
    with pytest.raises(DataError, match=expected):
        rows_in_memory(samples, backbone, layout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space is left on the disk for .*; free some and resume"),
        (OSError(errno.EROFS, "Read-only file system"), "cannot write .*: Read-only file system"),
    ],
)
@EACH_KIND
def test_a_failed_write_leaves_nothing_and_can_be_repeated(kinds, kind, tmp_path, monkeypatch, error, message):
    samples, backbone, layout = kinds[kind]
    begun = []

    def fail(*arguments, **options):
        begun.extend(tmp_path.iterdir())
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module.np, "save", fail)
        patch.setattr(module.np.lib.format, "write_array_header_1_0", fail)
        with pytest.raises(RunError, match=message):
            prepare_samples(samples, backbone, layout, tmp_path / "x")
    assert begun
    assert list(tmp_path.iterdir()) == []
    assert len(open_samples(prepare_samples(samples, backbone, layout, tmp_path / "x"), backbone)) == len(samples)


def test_a_full_disk_in_the_middle_of_the_images_is_an_error_and_not_a_crash(kinds, tmp_path, monkeypatch):
    """A memory map would end the process there; so the pixels must go through an ordinary file."""
    samples, backbone, layout = kinds["image"]
    written = []

    class FullDisk:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            written.append(len(data))
            if len(written) > 5:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

    opened = module.Path.open
    monkeypatch.setattr(
        module.Path, "open", lambda path, mode="r": FullDisk(opened(path, mode)) if mode == "wb" else opened(path, mode)
    )
    with pytest.raises(RunError, match="no space is left on the disk"):
        prepare_samples(samples, backbone, layout, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_image_leaves_nothing(files, backbones, tmp_path):
    files.sources[1].write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"1\.png cannot be read"):
        prepare_samples(files, backbones["source_cnn"], InputFormat(size=16), tmp_path / "new" / "x")
    assert list((tmp_path / "new").iterdir()) == []


def test_leftovers_of_a_killed_process_are_no_obstacle(kinds, tmp_path):
    samples, backbone, layout = kinds["text"]
    leftover = tmp_path / f"x.{os.getpid()}.partial"
    leftover.mkdir()
    (leftover / "ids.npy").write_bytes(b"half")
    prepare_samples(samples, backbone, layout, tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert len(open_samples(tmp_path / "x", backbone)) == len(samples)


def test_labels_that_do_not_fit_the_disk_are_an_error(tmp_path, monkeypatch):
    labels = np.array([0, 2, 1])
    write_labels(labels, tmp_path / "labels.npy")
    assert np.array_equal(np.load(tmp_path / "labels.npy"), labels)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.np, "save", full)
    with pytest.raises(RunError, match=r"no space is left on the disk for .*labels\.npy"):
        write_labels(labels, tmp_path / "labels.npy")


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


def test_texts_go_through_the_tokenizer_whole(kinds, tmp_path):
    _, backbone, layout = kinds["text"]
    samples = TextSamples(texts=("ab", "", "c"), ids=("x", "y", "z"))
    rows = open_samples(prepare_samples(samples, backbone, layout, tmp_path / "x"), backbone)
    assert rows.lengths.tolist() == [4, 2, 3]
    assert rows.pad_id == 3
    assert rows.batch(np.array([0, 1]), "cpu").values.tolist() == [[1, ord("a"), ord("b"), 2], [1, 2, 3, 3]]
