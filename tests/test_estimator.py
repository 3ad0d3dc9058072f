"""`TransferSearch`: scikit-learn's own checks, and every kind of sample and label that it takes."""

import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits, load_wine
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.metrics import f1_score
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from automl_tl import TransferSearch, default_space
from automl_tl.errors import ConfigError, DataError, PluginError, RunError
from automl_tl.host import availability, load_host
from automl_tl.plugin import FreezingStrategy, GroupPlan, Head, TransferPlan


def small(**settings):
    known = {
        "slots": "inline",
        "n_trials": 1,
        "max_epochs": 1,
        "strategies": ["full_finetune"],
        "heads": ["linear"],
        "backbones": ["source_mlp"],
        "random_state": 0,
    }
    return TransferSearch(**(known | settings))


@pytest.fixture(scope="module")
def wine():
    return load_wine(return_X_y=True)


@pytest.fixture(scope="module")
def fitted(wine):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOKY_MAX_CPU_COUNT", "1")
        return small(n_trials=2, max_epochs=3).fit(*wine)


@pytest.mark.slow
@parametrize_with_checks([small()])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def test_it_learns(wine):
    X, y = wine
    search = small(max_epochs=8).fit(X[::2], y[::2])
    assert search.score(X[1::2], y[1::2]) > 0.9
    assert search.predict_proba(X[1::2]).sum(1) == pytest.approx(1, abs=1e-5)


def test_what_a_fit_leaves(fitted):
    assert list(fitted.classes_) == [0, 1, 2]
    assert fitted.n_features_in_ == 13
    assert {trial.user_attrs.get("continues", trial.number) for trial in fitted.study_.trials} == {0, 1}
    assert fitted.best_spec_.backbone == "source_mlp"
    best = fitted.study_.trials[fitted.result_["best"]["trial"]]
    assert (best.value, best.user_attrs["spec"]) == (fitted.study_.best_value, fitted.best_spec_.to_json())
    assert fitted.result_["test"] is None
    assert fitted.result_["task"]["n_test"] == 0
    assert fitted.result_["task"]["n_train"] + fitted.result_["task"]["n_validation"] == 178


def test_before_a_fit_there_is_nothing_to_predict_with(wine):
    with pytest.raises(NotFittedError):
        small().predict(wine[0])


def test_it_can_be_pickled_after_its_directory_is_gone(fitted, wine):
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.predict_proba(wine[0]), fitted.predict_proba(wine[0]))
    assert [trial.params for trial in again.study_.trials] == [trial.params for trial in fitted.study_.trials]


def test_parameters_and_clones(fitted):
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    assert not hasattr(copy, "model_")
    assert copy.set_params(n_trials=3, metric="f1_micro").get_params()["n_trials"] == 3
    assert "n_trials=2" in repr(fitted)


def test_the_same_seed_gives_the_same_model(wine):
    X, y = wine
    one, two, other = (small(random_state=seed).fit(X, y) for seed in (0, 0, 1))
    assert np.array_equal(one.predict_proba(X), two.predict_proba(X))
    assert not np.array_equal(one.predict_proba(X), other.predict_proba(X))


@pytest.mark.parametrize("state", [None, np.random.RandomState(0)])
def test_other_random_states(wine, state):
    assert small(random_state=state).fit(*wine).result_["environment"]["seed"] >= 0


def test_cross_validation(wine):
    scores = cross_val_score(small(max_epochs=5), *wine, scoring="f1_macro", cv=2)
    assert scores.shape == (2,)
    assert (scores > 0.5).all()


def test_a_run_directory_is_kept_when_it_is_named(wine, tmp_path):
    search = small(run_dir=tmp_path / "run").fit(*wine)
    assert (tmp_path / "run" / "result.json").exists()
    with pytest.raises(RunError, match="already holds a run"):
        search.fit(*wine)


def test_progress_is_shown_on_request(wine, capsys):
    small().fit(*wine)
    assert capsys.readouterr().out == ""
    small(verbose=1).fit(*wine)
    assert "searching 1 trials" in capsys.readouterr().out


# Labels.


@pytest.mark.parametrize(
    "names",
    [np.array(["first", "second", "third"]), np.array([2.0, 10.0, 1.0]), np.array(["10", "9", " a b"], dtype=object)],
    ids=["text", "whole floats", "objects"],
)
def test_classes_are_the_labels_as_they_were_given(wine, names):
    X, y = wine
    search = small(max_epochs=5).fit(X, names[y])
    assert list(search.classes_) == sorted(names)
    said = search.predict(X)
    assert said.dtype.kind == names.dtype.kind
    assert set(said) <= set(names)
    assert (said == search.classes_[search.predict_proba(X).argmax(1)]).all()
    assert (said == names[y]).mean() > 0.8


def test_two_classes(wine):
    X, y = wine
    search = small(max_epochs=5, metric="f1_binary").fit(X, y == 1)
    assert list(search.classes_) == [False, True]
    assert search.result_["task"]["kind"] == "binary"
    assert f1_score(y == 1, search.predict(X)) > 0.8


def test_indicators_of_several_labels(wine):
    X, y = wine
    Y = np.column_stack([y == 0, y >= 1, X[:, 0] > 13]).astype(int)
    search = small(max_epochs=8).fit(X, Y)
    said, probabilities = search.predict(X), search.predict_proba(X)
    assert said.shape == probabilities.shape == Y.shape
    assert np.array_equal(said, probabilities >= 0.5)
    assert f1_score(Y, said, average="macro") > 0.7
    assert list(search.classes_) == ["0", "1", "2"]


@pytest.mark.parametrize("as_frame", [False, True])
def test_columns_of_indicators_keep_their_order(wine, as_frame):
    X, y = wine
    Y = pd.DataFrame({"sweet": y == 0, "dry": y >= 1, "bold": X[:, 0] > 13}).astype(int)
    search = small(max_epochs=8).fit(pd.DataFrame(X).assign(kind="wine") if as_frame else X, Y)
    assert list(search.classes_) == ["sweet", "dry", "bold"]
    said = search.predict(pd.DataFrame(X).assign(kind="wine") if as_frame else X)
    assert f1_score(Y, said, average="macro") > 0.7


def test_lists_of_several_labels(wine):
    X, y = wine
    for none in ([], ["white"]):
        labels = [["cheap", "red"] if target == 0 else ["red"] if target == 1 else none for target in y]
        search = small(max_epochs=5).fit(X, labels)
        assert list(search.classes_) == ["cheap", "red", *none]
        assert search.predict(X).shape == (178, 2 + len(none))
    pairs = [["red", "cheap"] if target else ["red", "dear"] for target in y]
    assert list(small().fit(X, pairs).classes_) == ["cheap", "dear", "red"]


def test_a_column_of_labels_is_flattened_with_a_warning(wine):
    X, y = wine
    with pytest.warns(DataConversionWarning):
        search = small().fit(X, y.reshape(-1, 1))
    assert search.predict(X).shape == (178,)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (lambda y: y * 0, ValueError, "y holds one class, '0'; a classifier needs at least two"),
        (lambda y: y + 0.5, ValueError, "Unknown label type"),
        (lambda y: np.where(y == 0, np.nan, y), ValueError, "contains NaN"),
        (lambda y: np.array(["a", "a ", "b"])[y], ValueError, "the labels 'a' and 'a ' of y read the same"),
        (lambda y: y[:50], ValueError, "inconsistent numbers of samples"),
        (lambda y: None, ValueError, "requires y"),
        (lambda y: np.where(np.arange(178) == 3, 7, y), DataError, "class '7' of x .train. has 1 sample"),
    ],
    ids=["one class", "numbers", "missing", "spaces", "too few", "none", "a class of one"],
)
def test_labels_that_cannot_be_learnt(wine, labels, error, message):
    X, y = wine
    with pytest.raises(error, match=message):
        small().fit(X, labels(y))


# Samples.


def test_images():
    digits = load_digits(n_class=3)
    images, y = digits.images[:90], digits.target[:90]
    search = small(backbones=["source_cnn"], max_epochs=3).fit(images, y)
    assert search.result_["task"]["modality"] == "image"
    assert search.score(digits.images[90:150], digits.target[90:150]) > 0.6
    colored = np.repeat((images * 15).astype(np.uint8)[..., None], 3, axis=-1)
    assert small(backbones=["source_cnn"]).fit(colored, y).predict(colored).shape == (90,)


def test_texts():
    if availability(load_host().backbone("minilm_l6")):
        pytest.skip("the weights of minilm_l6 are not installed")
    texts = ["a fine and funny film", "how I loved it", "dull, and far too long", "I hated every minute"] * 5
    y = np.array(["good", "good", "bad", "bad"] * 5)
    search = small(backbones=["minilm_l6"], strategies=["linear_probe"], max_epochs=3).fit(texts, y)
    assert search.result_["task"]["modality"] == "text"
    assert list(search.predict(["I loved this film", "what a dull film"])) == ["good", "bad"]
    assert list(search.predict(pd.Series(["I loved this film", "what a dull film"]))) == ["good", "bad"]


def test_a_frame_of_numbers(wine):
    frame = load_wine(as_frame=True).data
    search = small().fit(frame, wine[1])
    assert list(search.feature_names_in_) == list(frame.columns)
    with pytest.raises(ValueError, match="feature names"):
        search.predict(frame[frame.columns[::-1]])


def test_a_frame_of_numbers_and_words(wine):
    frame = load_wine(as_frame=True).data[["alcohol", "proline"]]
    frame = frame.assign(colour=np.where(wine[0][:, 9] > 5, "dark", "light"))
    search = small(max_epochs=8).fit(frame, pd.Series(wine[1]))
    assert search.score(frame, wine[1]) > 0.7


def test_rows_of_numbers_and_words(wine):
    rows = [[float(row[0]), "dark" if row[9] > 5 else "light"] for row in wine[0]]
    search = small(max_epochs=8).fit(rows, wine[1])
    assert search.score(rows, wine[1]) > 0.5
    assert np.array_equal(search.predict(np.array(rows, dtype=object)), search.predict(rows))


class Pairs:
    """As much of `torch.utils.data.Dataset` as anyone needs."""

    def __init__(self, X, y):
        self.X, self.y = X, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return self.X[index], self.y[index]


def test_datasets_of_torch(wine):
    import torch

    X, y = torch.tensor(wine[0], dtype=torch.float32), torch.tensor(wine[1])
    for dataset in (Pairs(X, y), torch.utils.data.TensorDataset(X, y)):
        search = small(max_epochs=5).fit(dataset)
        assert list(search.classes_) == ["0", "1", "2"]
        assert (search.predict(wine[0]) == wine[1].astype(str)).mean() > 0.8


# Plugins and spaces made in Python.


def surgical(trial, groups, context):
    tuned = trial.suggest_categorical("tuned", [group.name for group in groups])
    actions = ("tune" if group.name == tuned else "freeze" for group in groups)
    return TransferPlan(
        tuple(GroupPlan(group=group.name, action=action) for group, action in zip(groups, actions, strict=True))
    )


SURGICAL = FreezingStrategy(name="surgical", description="one layer group", plan=surgical)


def build_thin(trial, *, in_features, n_outputs):
    from torch import nn

    width = trial.suggest_categorical("width", (4, 8))
    return nn.Sequential(nn.Linear(in_features, width), nn.Linear(width, n_outputs))


THIN = Head(name="thin", description="a bottleneck", build=build_thin)


def test_plugin_objects(wine):
    search = small(strategies=[SURGICAL, "linear_probe"], heads=[THIN], n_trials=3)
    assert clone(search).get_params()["strategies"] == [SURGICAL, "linear_probe"]
    search.fit(*wine)
    assert search.best_spec_.head == "thin"
    assert search.best_spec_.head_parameters["width"] in (4, 8)
    assert {trial.user_attrs["spec"]["strategy"] for trial in search.study_.trials} <= {"surgical", "linear_probe"}
    assert search.predict(wine[0]).shape == (178,)


@pytest.mark.slow
def test_plugin_objects_reach_the_processes_of_the_slots(wine):
    search = small(strategies=[SURGICAL], heads=[THIN], slots="cpu*1", n_trials=2).fit(*wine)
    assert search.result_["trials"] == {"complete": 2, "pruned": 0, "failed": 0}
    assert [group.action for group in search.best_spec_.plan].count("tune") == 1
    assert {trial.user_attrs["slot"] for trial in search.study_.trials} == {"cpu0"}


def test_a_space_of_ones_own(wine):
    def space(trial, context):
        spec = default_space(trial, context)
        rate = trial.suggest_float("my_rate", 1e-3, 1e-2, log=True)
        return replace(spec, optimization=replace(spec.optimization, learning_rate=rate))

    search = small(space=space).fit(*wine)
    assert search.best_spec_.optimization.learning_rate == search.study_.best_trial.params["my_rate"]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"strategies": ["last_kk"]}, PluginError, "Did you mean 'last_k'"),
        ({"backbones": ["source_cnn"]}, PluginError, "reads image inputs, but the task's modality is tabular"),
        ({"n_trials": 0}, ConfigError, r"search\.trials: "),
        ({"metric": "f1"}, ConfigError, r"search\.metric: "),
        ({"slots": "gpu"}, ConfigError, "'gpu' is not a slot"),
        ({"random_state": -1}, ConfigError, "seed: "),
    ],
)
def test_settings_that_make_no_sense(wine, settings, error, message):
    with pytest.raises(error, match=message):
        small(**settings).fit(*wine)
