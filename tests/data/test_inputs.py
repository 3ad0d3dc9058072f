from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from automl_tl.config import DataConfig
from automl_tl.data import InputSchema, load_task, read_inputs
from automl_tl.errors import DataError

IMAGES = InputSchema(modality="image")
TEXTS = InputSchema(modality="text", input_column="review")
ROWS = InputSchema(modality="tabular", feature_columns=("a", "c"), categorical_columns=("c",))


@pytest.mark.parametrize("schema", [IMAGES, TEXTS, ROWS, InputSchema(modality="image", value_range=(-1.0, 1.0))])
def test_a_schema_survives_json(schema):
    assert InputSchema.from_json(json.loads(json.dumps(schema.to_json()))) == schema


def test_a_folder_of_images_flat_or_nested(image_folder):
    root = image_folder(cat=2, dog=1)
    assert read_inputs(root, IMAGES).ids == ("cat/0.png", "cat/1.png", "dog/0.png")
    assert read_inputs(root / "cat", IMAGES).ids == ("0.png", "1.png")


def test_a_single_image(image_folder):
    samples = read_inputs(image_folder(cat=1) / "cat" / "0.png", IMAGES)
    assert samples.ids == ("0.png",)
    assert samples.pixels(0, 8).shape == (8, 8, 3)


def test_bad_images_are_named_or_skipped(image_folder):
    root = image_folder(cat=3)
    (root / "cat" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1\.png cannot be read.*--skip-bad"):
        read_inputs(root, IMAGES)
    assert read_inputs(root, IMAGES, on_bad_sample="skip").ids == ("cat/0.png", "cat/2.png")


def test_a_table_needs_the_columns_of_training_only(tmp_path):
    path = tmp_path / "new.csv"
    pd.DataFrame({"more": [1, 2], "c": ["x", "y"], "a": [1, 2]}).to_csv(path, index=False)
    samples = read_inputs(path, ROWS)
    assert samples.frame.to_dict("list") == {"a": [1.0, 2.0], "c": ["x", "y"]}
    assert samples.ids == ("new.csv:1", "new.csv:2")
    pd.DataFrame({"a": [1, 2]}).to_csv(path, index=False)
    with pytest.raises(DataError, match=r"new\.csv lacks the columns 'c'"):
        read_inputs(path, ROWS)


def test_a_table_of_texts(tmp_path):
    path = tmp_path / "new.csv"
    pd.DataFrame({"review": ["one", None, "three"]}).to_csv(path, index=False)
    with pytest.raises(DataError, match=r"row 2 of .*new\.csv has no value in column 'review'"):
        read_inputs(path, TEXTS)
    assert read_inputs(path, TEXTS, on_bad_sample="skip").ids == ("new.csv:1", "new.csv:3")


def test_a_table_of_image_paths(image_folder, tmp_path):
    image_folder("img", cat=1)
    pd.DataFrame({"file": ["img/cat/0.png"]}).to_csv(tmp_path / "new.csv", index=False)
    samples = read_inputs(tmp_path / "new.csv", InputSchema(modality="image", input_column="file"))
    assert samples.pixels(0, 8).shape == (8, 8, 3)


@pytest.mark.parametrize("shape", [(4, 2), (4, 6, 6)])
def test_an_npz_with_x(tmp_path, shape):
    np.savez(tmp_path / "new.npz", x=np.zeros(shape))
    numbers = InputSchema(modality="tabular", feature_columns=("a", "b"))
    assert len(read_inputs(tmp_path / "new.npz", numbers if len(shape) == 2 else IMAGES)) == 4


def test_inputs_of_another_modality_are_an_error(image_folder, tmp_path):
    with pytest.raises(DataError, match="holds images, but the training inputs were text"):
        read_inputs(image_folder(cat=1), TEXTS)
    pd.DataFrame({"a": [1]}).to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(DataError, match="is a table, but the training inputs were images"):
        read_inputs(tmp_path / "new.csv", IMAGES)
    with pytest.raises(DataError, match=r"Did you mean 'new\.csv'"):
        read_inputs(tmp_path / "new.cs", IMAGES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        read_inputs(tmp_path / "empty", IMAGES)


def test_training_samples_are_read_again_the_same_way(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.random(20), "c": rng.choice(["x", "y"], 20), "label": [0, 1] * 10})
    frame.to_csv(tmp_path / "data.csv", index=False)
    task = load_task(DataConfig(path=str(tmp_path / "data.csv")), seed=0)
    again = read_inputs(tmp_path / "data.csv", task.schema)
    rows = [again.ids.index(name) for name in task.train.samples.ids]
    pd.testing.assert_frame_equal(again.take(rows).frame, task.train.samples.frame)
