"""Unlabeled samples beside a task: every form they come in, and what is wrong with them."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from automl_tl.config import DataConfig, load_config
from automl_tl.data import inputs, load_task, task_from_python
from automl_tl.errors import ConfigError, DataError
from automl_tl.features.task import leave_out_known

TEXTS = [f"sample number {number}" for number in range(40)]


@pytest.fixture
def table(tmp_path):
    """Return the path of twenty labeled texts."""
    path = tmp_path / "labeled.csv"
    pd.DataFrame({"text": TEXTS[:20], "label": ["a", "b"] * 10}).to_csv(path, index=False)
    return path


def load(path, **settings):
    return load_task(DataConfig(path=str(path), **settings), seed=0)


@pytest.mark.parametrize("with_label", [True, False])
def test_a_table_whose_labels_are_ignored(table, tmp_path, with_label):
    frame = pd.DataFrame({"text": TEXTS[20:]} | ({"label": ["?"] * 20} if with_label else {}))
    frame.to_csv(tmp_path / "more.csv", index=False)
    task = load(table, modality="text", unlabeled=str(tmp_path / "more.csv"))
    assert sorted(task.unlabeled.texts) == sorted(TEXTS[20:])
    assert task.unlabeled.texts != tuple(TEXTS[20:])  # in random order, so that any first ones are a fair draw
    assert any(note.startswith("20 unlabeled samples of") for note in task.notes)
    assert load(table, modality="text").unlabeled is None


@pytest.mark.parametrize("nested", [True, False])
def test_a_folder_of_images(image_folder, tmp_path, nested):
    root, more = image_folder(cat=5, dog=5), tmp_path / "more"
    for number in range(6):
        place = more / (f"class{number % 2}" if nested else "")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(place / f"{number}.png")
    task = load(root, unlabeled=str(more))
    assert len(task.unlabeled) == 6
    assert task.classes == ("cat", "dog")


def test_an_array(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, size=(30, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "labeled.npz", x=images[:20], y=np.arange(20) % 2)
    np.savez(tmp_path / "more.npz", x=images[20:])
    assert len(load(tmp_path / "labeled.npz", unlabeled=str(tmp_path / "more.npz")).unlabeled) == 10


def test_paths_start_at_the_folder_of_the_configuration(table, tmp_path):
    pd.DataFrame({"text": TEXTS[20:]}).to_csv(tmp_path / "more.csv", index=False)
    config = DataConfig(path="labeled.csv", modality="text", unlabeled="more.csv")
    assert len(load_task(config, seed=0, base=tmp_path).unlabeled) == 20


def test_python_objects():
    x = np.random.default_rng(0).normal(size=(30, 4))
    task = task_from_python(x[:20], np.arange(20) % 2, seed=0, unlabeled=x[20:])
    assert np.allclose(np.sort(task.unlabeled.frame["x0"]), np.sort(x[20:, 0]))


def test_of_many_some_are_drawn(table, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "MOST_UNLABELED", 5)
    pd.DataFrame({"text": TEXTS[20:]}).to_csv(tmp_path / "more.csv", index=False)
    task = load(table, modality="text", unlabeled=str(tmp_path / "more.csv"))
    assert len(task.unlabeled) == 5
    assert any("5 of 20, drawn at random, unlabeled samples" in note for note in task.notes)


def test_known_samples_are_left_out(table, tmp_path):
    pd.DataFrame({"text": TEXTS[10:]}).to_csv(tmp_path / "more.csv", index=False)
    task = leave_out_known(load(table, modality="text", unlabeled=str(tmp_path / "more.csv")))
    assert sorted(task.unlabeled.texts) == sorted(TEXTS[20:])
    assert any(note.startswith("10 of 30 unlabeled samples equal") for note in task.notes)
    assert not task.test.opened


def test_where_all_are_known_there_is_nothing_to_learn_from(table):
    task = load(table, modality="text", unlabeled=str(table))
    with pytest.raises(DataError, match=r"each of the 20 unlabeled samples equals .* remove data\.unlabeled"):
        leave_out_known(task)


def test_no_other_task_is_touched(table):
    task = load(table, modality="text")
    assert leave_out_known(task) is task


def test_missing_cells_are_flaws(table, tmp_path):
    pd.DataFrame({"text": ["one", None, "three"]}).to_csv(tmp_path / "more.csv", index=False)
    settings = {"modality": "text", "unlabeled": str(tmp_path / "more.csv")}
    with pytest.raises(DataError, match=r"row 2 of .*more\.csv has no value in column 'text'"):
        load(table, **settings)
    task = load(table, on_bad_sample="skip", **settings)
    assert sorted(task.unlabeled.texts) == ["one", "three"]


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("more.csv", {"words": ["x"]}, r"more\.csv lacks the columns 'text'"),
        ("nothing.csv", None, r"nothing\.csv does not exist"),
        ("more.txt", {"text": ["x"]}, "unknown suffix"),
    ],
)
def test_what_cannot_be_read_says_why(table, tmp_path, name, columns, message):
    if columns is not None:
        pd.DataFrame(columns).to_csv(tmp_path / name, index=False)
    with pytest.raises(DataError, match=message):
        load(table, modality="text", unlabeled=str(tmp_path / name))


def test_a_task_of_several_labels_a_sample_refuses_them(tmp_path):
    pd.DataFrame({"text": TEXTS[:20], "label": ["a;b", "b"] * 10}).to_csv(tmp_path / "many.csv", index=False)
    with pytest.raises(DataError, match=r"one label a sample.* remove data\.unlabeled"):
        load(tmp_path / "many.csv", modality="text", label_separator=";", unlabeled=str(tmp_path / "many.csv"))


def test_a_source_task_refuses_them():
    with pytest.raises(ConfigError, match=r"used for the target task only; give them as data\.unlabeled"):
        load_config(
            {"data": "x.csv", "source": {"data": {"path": "y.csv", "unlabeled": "z.csv"}, "backbone": "source_mlp"}}
        )
