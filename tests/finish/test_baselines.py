from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from automl_tl.config import DataConfig
from automl_tl.data import load_task, task_from_python
from automl_tl.finish import baselines
from automl_tl.finish.baselines import fit_raw_inputs, majority, raw_inputs_left_out

PRAISE, BLAME = ("a joy", "warm", "funny", "clever", "moving"), ("dull", "a bore", "slow", "empty", "a mess")


def load(name, **settings):
    task = load_task(DataConfig(path=f"sklearn:{name}", **settings), seed=0)
    return task, task.test.open()


def raw_inputs(task, test, *, seed):
    return fit_raw_inputs(task, seed=seed).predict(test.samples)


def from_python(x, y):
    task = task_from_python(x, y, seed=0)
    return task, task.test.open()


def reviews(words):
    return [f"{words[i % 5]} {words[(i // 5) % 5]} {i}" for i in range(40)]


@pytest.mark.parametrize(("name", "settings", "least"), [("digits", {"per_class": 30}, 0.85), ("wine", {}, 0.9)])
def test_a_linear_model_on_raw_inputs_is_a_fair_rival(name, settings, least):
    task, test = load(name, **settings)
    said = raw_inputs(task, test, seed=0)
    assert said.shape == test.labels.shape
    assert f1_score(test.labels, said, average="macro") > least
    assert np.array_equal(raw_inputs(task, test, seed=0), said)


def test_texts_are_told_apart_by_their_words():
    task, test = from_python(reviews(PRAISE) + reviews(BLAME), ["good"] * 40 + ["bad"] * 40)
    assert f1_score(test.labels, raw_inputs(task, test, seed=0), average="macro") > 0.95


@pytest.mark.parametrize(("first", "second"), [("a b", "a c"), ("7", "8"), ("!", "?"), ("好", "坏")])
def test_texts_without_long_words_are_no_obstacle(first, second):
    task, test = from_python([first, second] * 20, ["x", "y"] * 20)
    assert f1_score(test.labels, raw_inputs(task, test, seed=0), average="macro") == 1


def test_categories_of_a_table_are_seen(tmp_path):
    rows = "\n".join(f"{color},{i % 7},{color == 'red'}" for i in range(30) for color in ("red", "blue"))
    (tmp_path / "table.csv").write_text("color,number,label\n" + rows)
    task = load_task(DataConfig(path=str(tmp_path / "table.csv")), seed=0)
    test = task.test.open()
    assert np.array_equal(raw_inputs(task, test, seed=0), test.labels)


def multilabel(labels):
    """Rows whose columns show the labels, with some noise."""
    noise = np.random.default_rng(0).normal(scale=0.2, size=labels.shape)
    return from_python(labels + noise, labels)


def test_several_labels_a_sample_are_predicted_one_by_one():
    task, test = multilabel((np.arange(160)[:, None] >> np.arange(3)) % 2)
    said = raw_inputs(task, test, seed=0)
    assert said.shape == test.labels.shape
    assert f1_score(test.labels, said, average="macro") > 0.95


def test_a_label_that_all_samples_carry_is_predicted_without_a_warning():
    labels = (np.arange(80)[:, None] >> np.arange(3)) % 2
    labels[:, 1] = 1
    task, test = multilabel(labels)
    assert (raw_inputs(task, test, seed=0)[:, 1] == 1).all()


def test_many_rows_are_thinned_and_the_rarest_class_stays(monkeypatch):
    monkeypatch.setattr(baselines, "MOST_ROWS", 10)
    labels = np.repeat([0, 1], [1000, 6])
    values = np.random.default_rng(0).normal(size=(1006, 2)) + 9 * labels[:, None]
    task, test = from_python(values, labels)
    fitted = []
    fit = LogisticRegression.fit
    monkeypatch.setattr(LogisticRegression, "fit", lambda self, x, y: fitted.append(y) or fit(self, x, y))
    for seed in range(4):
        said = raw_inputs(task, test, seed=seed)
        assert len(fitted[-1]) == 10
        assert set(fitted[-1]) == {0, 1}
        assert f1_score(test.labels, said, average="macro") > 0.9


@pytest.mark.parametrize(("name", "settings", "least"), [("digits", {"per_class": 30}, 0.8), ("wine", {}, 0.9)])
def test_raw_inputs_are_scored_by_samples_that_are_left_out(name, settings, least):
    task, _ = load(name, **settings)
    score = raw_inputs_left_out(task, metric="f1_macro", seed=0)
    assert least < score <= 1
    assert raw_inputs_left_out(task, metric="f1_macro", seed=0) == score


@pytest.mark.parametrize("components", [256, 5])
def test_texts_are_scored_by_their_words_or_by_components_of_them(monkeypatch, components):
    monkeypatch.setattr(baselines, "COMPONENTS", components)
    task, _ = from_python(reviews(PRAISE) + reviews(BLAME), ["good"] * 40 + ["bad"] * 40)
    assert raw_inputs_left_out(task, metric="f1_macro", seed=0) > 0.9


def test_several_labels_are_scored_without_being_seen():
    task, _ = multilabel((np.arange(160)[:, None] >> np.arange(3)) % 2)
    assert raw_inputs_left_out(task, metric="f1_macro", seed=0) > 0.9


def test_the_majority_is_the_most_frequent_class():
    task, _ = from_python(np.arange(60.0)[:, None], ["b"] * 20 + ["a"] * 10 + ["c"] * 30)
    assert [task.classes[k] for k in majority(task, 4)] == ["c"] * 4


def test_the_majority_of_several_labels_are_those_that_most_samples_carry():
    labels = np.stack([np.arange(60) % 3 > 0, np.arange(60) % 3 == 0, np.arange(60) % 60 >= 0], 1).astype(int)
    task, test = multilabel(labels)
    assert majority(task, 2).tolist() == [[1, 0, 1]] * 2
    assert majority(task, len(test.labels)).shape == test.labels.shape
