from __future__ import annotations

import numpy as np
import pytest

from automl_tl.config import DataConfig
from automl_tl.data import load_task
from automl_tl.errors import DataError

Y = np.tile([0, 1], 10)


@pytest.fixture
def load(tmp_path):
    def load_arrays(settings=None, **arrays):
        path = tmp_path / "data.npz"
        np.savez(path, **arrays)
        return load_task(DataConfig(path=str(path), **(settings or {})), seed=0)

    return load_arrays


@pytest.mark.parametrize(
    ("shape", "modality"),
    [((20, 4), "tabular"), ((20, 8, 8), "image"), ((20, 8, 8, 3), "image"), ((20, 1, 8, 8), "image")],
)
def test_the_shape_tells_the_modality(load, shape, modality):
    task = load(x=np.random.default_rng(0).random(shape), y=Y)
    assert (task.modality, task.kind, task.classes) == (modality, "binary", ("0", "1"))
    assert (len(task.train), len(task.validation), len(task.test)) == (13, 3, 4)


def test_strings_are_texts(load):
    task = load(X=np.array([f"text {index}" for index in range(20)]), Y=Y)
    assert (task.modality, task.train.samples.texts[0][:5]) == ("text", "text ")


def test_images_can_be_read_as_rows(load):
    task = load({"modality": "tabular"}, x=np.random.default_rng(0).random((20, 4, 4)), y=Y)
    assert (task.modality, len(task.schema.feature_columns)) == ("tabular", 16)


def test_given_parts_are_honored(load):
    x = np.random.default_rng(0).random((20, 4))
    task = load(x_train=x, y_train=Y, x_val=x[:6], y_val=Y[:6], x_test=x[:2], y_test=Y[:2])
    assert (len(task.train), len(task.validation), len(task.test)) == (20, 6, 2)


def test_a_multi_hot_y_is_multilabel(load):
    y = np.tile([[0, 1, 1], [1, 0, 0]], (10, 1))
    task = load(x=np.random.default_rng(0).random((20, 4)), y=y)
    assert (task.kind, task.classes) == ("multilabel", ("0", "1", "2"))


def test_objects_are_never_unpickled(load):
    with pytest.raises(DataError, match=r"array 'x' .* never unpickled"):
        load(x=np.array([{"a": 1}] * 20, dtype=object), y=Y)


def test_missing_arrays_list_what_there_is(load):
    with pytest.raises(DataError, match="holds the arrays images, y; expected x and y"):
        load(images=np.zeros((20, 4)), y=Y)


def test_a_corrupt_file_is_named(tmp_path):
    (tmp_path / "data.npz").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match=r"data\.npz cannot be read as an \.npz file"):
        load_task(DataConfig(path=str(tmp_path / "data.npz")), seed=0)


def test_a_directory_of_npz_files(tmp_path):
    x = np.random.default_rng(0).random((20, 4))
    np.savez(tmp_path / "train.npz", x=x, y=Y)
    np.savez(tmp_path / "test.npz", x=x[:4], y=Y[:4])
    assert len(load_task(DataConfig(path=str(tmp_path)), seed=0).test) == 4


def test_nan_in_an_image_is_named_or_skipped(load):
    x = np.random.default_rng(0).random((20, 8, 8))
    x[3, 0, 0] = np.nan
    with pytest.raises(DataError, match="train:3 holds NaN"):
        load(x=x, y=Y)
    assert any("1 of 20 samples" in note for note in load({"on_bad_sample": "skip"}, x=x, y=Y).notes)
