"""The model as files: alone it predicts, exactly as it did, and what is damaged is named."""

import json
import pickle
import shutil
import textwrap

import numpy as np
import pytest
from sklearn.datasets import load_wine
from sklearn.metrics import f1_score

from automl_tl import api
from automl_tl.config import DataConfig
from automl_tl.data import inputs_from_python, load_task
from automl_tl.errors import DataError, PluginError, RunError
from automl_tl.metrics.scores import decide
from automl_tl.serve.model import load_model


@pytest.fixture
def task():
    return load_task(DataConfig(path="sklearn:wine"), seed=0)


@pytest.fixture
def alone(wine_run, tmp_path):
    """A copy of `model/` and nothing else."""
    return shutil.copytree(wine_run / "model", tmp_path / "elsewhere")


def test_alone_it_reproduces_the_test_score(alone, task, wine_result):
    test = task.test.open()
    model = load_model(alone)
    said = decide(model.probabilities(test.samples), model.kind)
    assert f1_score(test.labels, said, average="macro") == pytest.approx(wine_result["test"]["f1_macro"], abs=1e-12)
    assert model.classes == task.classes


def test_predictions_are_a_table(alone, task):
    table = load_model(alone).predictions(task.validation.samples)
    probabilities = table[[f"probability_class_{k}" for k in range(3)]].to_numpy()
    assert list(table.columns[:2]) == ["id", "class"]
    assert list(table["id"]) == list(task.validation.samples.ids)
    assert probabilities.sum(1) == pytest.approx(1, abs=1e-5)
    assert list(table["class"]) == [f"class_{k}" for k in probabilities.argmax(1)]


def test_large_inputs_are_predicted_in_chunks(alone, task, monkeypatch):
    model = load_model(alone)
    whole = model.probabilities(task.train.samples)
    monkeypatch.setattr("automl_tl.serve.model.CHUNK", 7)
    assert model.probabilities(task.train.samples) == pytest.approx(whole, abs=1e-6)


def test_changed_copies_are_averaged_with_the_sample_itself(alone, task, monkeypatch):
    """The same sample is changed in the same way each time, whatever comes with it."""
    model, samples = load_model(alone), task.validation.samples
    plain, averaged = model.probabilities(samples), model.probabilities(samples, views=3)
    assert averaged.sum(1) == pytest.approx(1, abs=1e-5)
    assert not np.allclose(averaged, plain, atol=1e-4)
    assert np.array_equal(model.probabilities(samples, views=3), averaged)
    monkeypatch.setattr("automl_tl.serve.model.CHUNK", 7)
    assert model.probabilities(samples, views=3) == pytest.approx(averaged, abs=1e-6)
    assert model.probabilities(samples.take([5]), views=3) == pytest.approx(averaged[[5]], abs=1e-6)
    one, two = (model.probabilities(samples, views=views) for views in (1, 2))
    changed = {1: 2 * one - plain, 2: 3 * two - 2 * one}  # what the model says of each copy alone
    for said in changed.values():
        assert said.sum(1) == pytest.approx(1, abs=1e-4)
        assert said.min() > -1e-5
    table = model.predictions(samples, views=3)
    assert table[[f"probability_class_{k}" for k in range(3)]].to_numpy() == pytest.approx(averaged, abs=1e-6)


def test_no_samples_no_rows(alone, task):
    assert load_model(alone).probabilities(task.train.samples.take([])).shape == (0, 3)


def test_arrays_are_read_like_the_training_data(alone, task):
    model = load_model(alone)
    X = load_wine().data[:5]
    assert model.probabilities(inputs_from_python(X, model.schema)).shape == (5, 3)
    with pytest.raises(DataError, match=r"12 features a sample, expected 13"):
        inputs_from_python(X[:, 1:], model.schema)


def test_it_survives_a_pickle(alone, task):
    model = load_model(alone)
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.probabilities(task.train.samples), model.probabilities(task.train.samples))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), r"elsewhere holds no trained model; expected model\.json"),
        (lambda folder: (folder / "model.json").write_text("{"), r"model\.json is damaged"),
        (lambda folder: (folder / "model.json").write_bytes(b"\xff\xfe\x00"), r"model\.json is damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"the checkpoint .*model\.safetensors is missing"),
        (lambda folder: truncate(folder / "model.safetensors"), r"the checkpoint .*model\.safetensors is damaged"),
        (lambda folder: edit(folder, schema_version=99), r"was written by a newer automl-tl \(schema 99\); upgrade"),
        (lambda folder: edit(folder, classes=["a", "b"]), r"model\.safetensors does not fit its backbone 'source_mlp'"),
        (lambda folder: edit_member(folder, spec={"backbone": 3}), r"a stored trial specification is damaged"),
        (lambda folder: edit(folder, adjustment={"temperature": -1}), r"a stored adjustment .* is damaged"),
    ],
    ids=["absent", "cut off", "binary", "no weights", "weights cut off", "newer", "other classes", "no spec", "cold"],
)
def test_what_is_damaged_is_named(alone, damage, message):
    damage(alone)
    with pytest.raises(RunError, match=message):
        load_model(alone)


def test_a_file_is_no_model(alone):
    with pytest.raises(RunError, match="holds no trained model"):
        load_model(alone / "model.json")


def test_a_plugin_that_is_gone_is_missed(alone):
    edit(alone, plugins={"dirs": [str(alone / "gone")], "disabled": []})
    with pytest.raises(PluginError, match=r"plugin directory .*gone does not exist"):
        load_model(alone)


ZOO = """
    from pathlib import Path
    from automl_tl.plugin import Backbone, TabularInput, Weights, hookimpl

    FILE = Path(__file__).with_name("zoo.weights")

    def build(*, input_shape, weights):
        from torch import nn
        module = nn.Module()
        module.only = nn.Linear(*input_shape, 8)
        if weights is not None:
            nn.init.constant_(module.only.weight, float(weights.read_text()))
        return module

    @hookimpl
    def automl_tl_backbones():
        weights = Weights(
            find=lambda: FILE if FILE.exists() else None, install="pip install zoo", origin="", license="", sha256=""
        )
        yield Backbone(
            name="zoo", description="", input=TabularInput(), layer_groups=("only",), build=build, weights=weights
        )
"""


def test_the_published_weights_are_needed_no_more(wine_config, tmp_path):
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "zoo.py").write_text(textwrap.dedent(ZOO))
    (folder / "zoo.weights").write_text("0.5")
    config = {**wine_config, "backbones": "auto", "strategies": "linear_probe", "plugins": {"dirs": [str(folder)]}}
    run = api.search({**config, "run_dir": str(tmp_path / "run")})
    assert (run.result["best"]["backbone"], run.result["best"]["weights"]) == ("zoo", "transferred")
    assert (run.model.members[0].model.groups["only"].weight == 0.5).all()

    (folder / "zoo.weights").unlink()
    X = load_wine().data
    assert load_model(run.path / "model").probabilities(inputs_from_python(X, run.model.schema)) == pytest.approx(
        run.model.probabilities(inputs_from_python(X, run.model.schema))
    )


def test_load_run_gives_result_study_and_model(wine_run, wine_result, task):
    run = api.load_run(wine_run)
    assert run.result == wine_result
    assert len(run.study.trials) == 2
    assert len(run.predict(load_wine().data[:4])) == 4


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def edit(folder, **values):
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**card, **values}))


def edit_member(folder, **values):
    families = json.loads((folder / "model.json").read_text())["families"]
    families[0]["members"][0] |= values
    edit(folder, families=families)
