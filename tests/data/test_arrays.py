"""Tasks and inputs from Python objects."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from automl_tl.config import DataConfig
from automl_tl.data import inputs_from_python, task_from_python
from automl_tl.errors import DataError

RNG = np.random.default_rng(0)
Y = np.tile(["a", "b"], 10)
TEXTS = [f"a text with number {index}" for index in range(20)]


def make(x, y=None, seed=0, test=None, hold_out_test=True, **settings):
    config = DataConfig(path="toy", **settings)
    return task_from_python(x, y, config=config, seed=seed, test=test, hold_out_test=hold_out_test)


@pytest.mark.parametrize(
    ("x", "modality"),
    [
        (RNG.random((20, 3)), "tabular"),
        (RNG.random((20, 3)).tolist(), "tabular"),
        (torch.rand(20, 3), "tabular"),
        (RNG.random((20, 6, 5)), "image"),
        (RNG.integers(0, 256, (20, 3, 6, 5)), "image"),
        ([RNG.random((4 + index, 6, 3)) for index in range(20)], "image"),
        ([Image.new("L", (5, 4 + index)) for index in range(20)], "image"),
        (TEXTS, "text"),
        (np.array(TEXTS), "text"),
        (np.array(TEXTS, dtype=object), "text"),
        (pd.Series(TEXTS), "text"),
        (pd.DataFrame({"t": TEXTS}), "text"),
        (pd.DataFrame({"n": range(20), "c": list("xy") * 10}), "tabular"),
        ([[index, "red"] for index in range(20)], "tabular"),
        (np.array([[index, "red"] for index in range(20)], dtype=object), "tabular"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_every_kind_of_x(x, modality):
    task = make(x, Y)
    assert task.modality == modality
    assert (task.name, task.kind, task.classes) == ("toy", "binary", ("a", "b"))
    assert (len(task.train), len(task.validation), len(task.test)) == (13, 3, 4)
    again = inputs_from_python(x, task.schema)
    assert (len(again), again.modality) == (20, modality)


def test_paths_are_images(image_folder):
    paths = sorted(image_folder(a=10, b=10).rglob("*.png"))
    y = [path.parent.name for path in paths]
    for x in (paths, [str(path) for path in paths]):
        task = make(x, y)
        assert task.modality == "image"
        assert task.train.samples.pixels(0, 8).shape == (8, 8, 3)


def test_strings_are_read_as_the_modality_says():
    assert make([f"{index}.png" for index in range(20)], Y, modality="text").modality == "text"
    assert make(RNG.random((20, 4, 4)), Y, modality="tabular").train.samples.frame.shape[1] == 16
    with pytest.raises(DataError, match="holds tabular inputs, but image ones are expected"):
        make(RNG.random((20, 4)), Y, modality="image")


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([0, 16]), (0.0, 16.0)),
        (np.array([0.1, 0.9]), (0.0, 1.0)),
        (np.array([-0.9, 0.9]), (-1.0, 1.0)),
        (np.array([0, 255]), (0.0, 255.0)),
        (np.array([3, 200], dtype=np.uint8), (0.0, 255.0)),
        (np.array([-3.0, 2.0]), (-3.0, 2.0)),
        (np.array([0, 65535]), (0.0, 65535.0)),
    ],
)
def test_the_value_range_is_inferred(array, expected):
    x = np.broadcast_to(array[:, None], (20, 2, 4)).astype(array.dtype)
    assert make(x, Y).schema.value_range == expected


@pytest.mark.parametrize(
    ("y", "kind", "classes"),
    [
        (np.tile([3, 1], 10), "binary", ("1", "3")),
        (np.tile([3.0, 1.0, 2.0, 1.0], 5), "multiclass", ("1", "2", "3")),
        ([True, False] * 10, "binary", ("False", "True")),
        (torch.tensor([0, 1] * 10), "binary", ("0", "1")),
        (pd.Series(Y, index=range(5, 25)), "binary", ("a", "b")),
        (np.tile([[0], [1]], (10, 1)), "binary", ("0", "1")),
        (np.tile([[1, 0, 1], [0, 1, 0]], (10, 1)), "multilabel", ("0", "1", "2")),
        (pd.DataFrame(np.tile([[1, 1], [0, 1]], (10, 1)), columns=["r", "s"]), "multilabel", ("r", "s")),
        ([["r", "s"], ["s"]] * 10, "multilabel", ("r", "s")),
        ([{"r"}, set(), {"s"}, {"s"}] * 5, "multilabel", ("r", "s")),
    ],
    ids=str,
)
def test_every_kind_of_y(y, kind, classes):
    task = make(RNG.random((20, 3)), y)
    assert (task.kind, task.classes, task.n_outputs) == (kind, classes, len(classes))
    if kind == "multilabel":
        assert task.train.labels.dtype == np.float32
        assert task.train.labels.shape == (len(task.train), len(classes))
    else:
        assert task.train.labels.dtype == np.int64


def test_multi_hot_rows_keep_their_labels():
    y = RNG.integers(0, 2, (60, 3))
    task = make(np.arange(60.0)[:, None], y)
    rows = task.train.samples.frame["x0"].to_numpy(dtype=int)
    assert np.array_equal(task.train.labels, y[rows])


def test_a_class_without_samples_of_a_multi_hot_y_is_an_error():
    with pytest.raises(DataError, match=r"class '1' .* has 0 samples"):
        make(RNG.random((20, 3)), np.tile([[1, 0, 1], [0, 0, 1]], (10, 1)))


def test_a_multi_hot_y_holds_zeros_and_ones():
    y = np.tile([[0, 1], [1, 0]], (10, 1))
    y[4, 0] = 2
    with pytest.raises(DataError, match=r"sample 4 of x \(train\) has labels other than 0 and 1"):
        make(RNG.random((20, 3)), y)


def test_a_torch_dataset_is_read_through():
    dataset = TensorDataset(torch.rand(20, 3, 8, 8), torch.tensor([0, 1] * 10))
    task = make(dataset)
    assert (task.modality, task.kind) == ("image", "binary")
    assert len(task.train) == 13


def test_a_dataset_of_something_else_is_an_error():
    with pytest.raises(DataError, match=r"must be pairs \(x, label\)"):
        make(TensorDataset(torch.rand(4, 3)))


def test_a_frame_can_hold_its_labels():
    task = make(pd.DataFrame({"v": range(20), "label": Y}))
    assert (task.classes, task.schema.feature_columns) == (("a", "b"), ("v",))


def test_a_given_test_split_is_kept():
    x = RNG.random((20, 3))
    task = make(x, Y, test=(x[:5], Y[:5]))
    assert (len(task.train), len(task.validation), len(task.test)) == (16, 4, 5)
    assert np.allclose(task.test.open().samples.frame.to_numpy(), x[:5])
    with pytest.raises(DataError, match=r"x \(test\) has 2 features a sample, expected 3"):
        make(x, Y, test=(x[:, :2], Y))


def test_without_a_test_split_all_samples_are_learnt():
    task = make(RNG.random((20, 3)), Y, hold_out_test=False)
    assert (len(task.train), len(task.validation), len(task.test)) == (16, 4, 0)
    assert task.test.open().labels.shape == (0,)
    with pytest.raises(DataError, match=r"class 'c' .* has 1 sample, at least 2 are needed"):
        make(RNG.random((20, 3)), [*Y[:19], "c"], hold_out_test=False)


def test_nan_is_named():
    x = RNG.random((20, 3))
    x[7, 1] = np.nan
    with pytest.raises(DataError, match=r"sample 7 of x \(train\) has nan in column 'x1'"):
        make(x, Y)


@pytest.mark.parametrize("missing", [None, np.nan])
def test_a_missing_label_or_text_is_named(missing):
    with pytest.raises(DataError, match=r"sample 0 of x \(train\) has no label"):
        make(TEXTS, [missing, *Y[1:]])
    with pytest.raises(DataError, match=r"sample 0 of x \(train\) has no value"):
        make([None, *TEXTS[1:]], Y)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.arange(20.0), r"of shape \(20,\)"),
        (np.zeros((20, 2, 2, 2, 2)), r"of shape \(20, 2, 2, 2, 2\)"),
        (np.zeros((20, 2, 2, 5)), r"has shape \(2, 2, 5\)"),
        ([[1.0], [1.0, 2.0]], "unequal lengths"),
        ([], "is empty"),
        ({"a": 1}, "expected numbers of shape"),
    ],
    ids=str,
)
def test_an_x_that_cannot_be_read_says_what_can(x, message):
    with pytest.raises(DataError, match=message):
        make(x, Y)


def test_lengths_must_agree():
    for x in (RNG.random((20, 3)), RNG.random((20, 4, 4))):
        with pytest.raises(DataError, match="has 20 samples, but its y has 4 labels"):
            make(x, Y[:4])


def test_labels_are_needed():
    for x in (RNG.random((20, 3)), RNG.random((20, 4, 4)), TEXTS):
        with pytest.raises(DataError, match=r"x \(train\) has no labels; pass y"):
            make(x)
    frame = pd.DataFrame({"v": range(20)})
    with pytest.raises(DataError, match=r"x \(test\) has no labels; pass y"):
        make(frame, Y, test=(frame, None))


def test_columns_of_one_name_are_an_error():
    with pytest.raises(DataError, match="several columns 'a'"):
        make(pd.DataFrame(RNG.random((20, 2)), columns=["a", "a"]), Y)


def test_a_number_is_no_class():
    with pytest.raises(DataError, match="has 20 distinct values in 20 samples; only classes can be learnt"):
        make(RNG.random((20, 3)), RNG.random(20))


def test_columns_are_settings_of_tables():
    for x in (RNG.random((20, 3)), RNG.random((20, 4, 4))):
        with pytest.raises(DataError, match=r"data\.group names a column of a table"):
            make(x, Y, group="patient")


def test_inputs_must_fit_the_training_inputs():
    table = make(pd.DataFrame({"n": RNG.random(20), "c": list("xy") * 10}), Y).schema
    image = make(RNG.random((20, 4, 4)), Y).schema
    text = make(TEXTS, Y).schema
    with pytest.raises(DataError, match="lacks the columns 'c'"):
        inputs_from_python(pd.DataFrame({"n": [1.0]}), table)
    with pytest.raises(DataError, match="has 3 features a sample, expected 2"):
        inputs_from_python(np.zeros((2, 3)), table)
    with pytest.raises(DataError, match="holds tabular inputs, but image ones are expected"):
        inputs_from_python(np.zeros((2, 3)), image)
    with pytest.raises(DataError, match="pass images"):
        inputs_from_python(pd.DataFrame({"n": [1.0]}), image)
    with pytest.raises(DataError, match="holds tabular inputs, but text ones are expected"):
        inputs_from_python(np.zeros((2, 3)), text)
    with pytest.raises(DataError, match="has no value in column 'text'"):
        inputs_from_python(["a", None], text)


def test_an_array_can_stand_for_a_numeric_frame():
    schema = make(pd.DataFrame({"a": RNG.random(20), "b": RNG.random(20)}), Y).schema
    samples = inputs_from_python(np.array([[1.0, 2.0]]), schema)
    assert samples.frame.to_dict("list") == {"a": [1.0], "b": [2.0]}
