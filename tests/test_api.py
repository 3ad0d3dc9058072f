"""The public Python API: every way to begin, to go on and to come back."""

import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from sklearn.datasets import load_wine

import automl_tl
from automl_tl import api
from automl_tl.config import load_config
from automl_tl.errors import ConfigError, RunError
from automl_tl.search.study import settled


@pytest.fixture
def run_copy(wine_run, tmp_path):
    """A finished run that may be changed."""
    return shutil.copytree(wine_run, tmp_path / "run")


@pytest.mark.slow
def test_search_can_be_called_although_a_package_has_its_name(tmp_path):
    code = """
import automl_tl.search.space as space
from automl_tl import default_space, search
from automl_tl.errors import ConfigError
assert space.default_space is default_space
try:
    search("absent.yaml")
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("cannot read the configuration absent.yaml: No such file or directory\n", "")


def test_every_public_name_can_be_had():
    assert {"search", "load_run", "TransferSearch", "default_space", "TrialSpec"} <= set(automl_tl.__all__)
    for name in automl_tl.__all__:
        assert callable(getattr(automl_tl, name))
    assert set(automl_tl.__all__) <= set(dir(automl_tl))
    with pytest.raises(AttributeError, match="has no attribute 'serach'"):
        automl_tl.serach  # noqa: B018


@pytest.mark.parametrize("form", ["mapping", "RunConfig", "path", "text"])
def test_a_configuration_in_any_form(wine_config, tmp_path, form):
    values = {**wine_config, "strategies": "linear_probe", "search": {"trials": 1, "max_epochs": 1}}
    values["run_dir"] = str(tmp_path / "run")
    file = tmp_path / "wine.yaml"
    file.write_text(yaml.safe_dump(values))
    config = {"mapping": values, "RunConfig": load_config(values), "path": file, "text": str(file)}[form]
    run = api.search(config)
    assert run.path == tmp_path / "run"
    assert run.result == json.loads((run.path / "result.json").read_text())
    assert run.result["trials"]["complete"] == len(settled(run.study)) == 1


def test_relative_paths_start_at_the_configuration_and_still_do_when_resumed(wine_config, tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    load_wine(as_frame=True).frame.to_csv(folder / "wine.csv", index=False)
    values = {**wine_config, "data": "wine.csv", "strategies": "linear_probe", "search": {"trials": 1, "max_epochs": 1}}
    (folder / "wine.yaml").write_text(yaml.safe_dump({**values, "run_dir": str(tmp_path / "run")}))
    monkeypatch.chdir(tmp_path)
    api.search("project/wine.yaml")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert api.resume(tmp_path / "run").result["trials"]["complete"] == 1


def test_new_samples_from_memory_and_from_files(wine_run, tmp_path):
    run = api.load_run(str(wine_run))
    wine = load_wine(as_frame=True)
    wine.data.iloc[:6].to_csv(tmp_path / "new.csv", index=False)
    from_array, from_frame = run.predict(wine.data.to_numpy()[:6]), run.predict(wine.data.iloc[:6])
    from_file = run.predict(tmp_path / "new.csv")
    for table in (from_frame, from_file):
        pd.testing.assert_frame_equal(table.drop(columns="id"), from_array.drop(columns="id"))
    assert list(from_file["id"]) == [f"new.csv:{row}" for row in range(1, 7)]


def test_resuming_a_finished_run_changes_nothing(run_copy, wine_result):
    result = api.resume(run_copy).result
    for key in ("trials", "best", "validation", "test", "incumbents"):
        assert result[key] == wine_result[key]
    assert result["test_opened"] == 2


@pytest.mark.parametrize(("trials", "total"), [("+1", 3), ("4", 4), ("1", 2)])
def test_more_trials(run_copy, trials, total):
    run = api.resume(run_copy, trials=trials)
    assert sum(run.result["trials"].values()) == len(settled(run.study)) == total
    parameters = [tuple(sorted(trial.params.items())) for trial in settled(run.study)]
    assert len(set(parameters)) == total
    assert len(json.loads((run_copy / "plugins.json").read_text())) > 10


def test_more_time_lifts_the_limit_of_trials(run_copy):
    run = api.resume(run_copy, seconds="+4")  # a busy machine begins its first trial late
    assert sum(run.result["trials"].values()) > 2
    assert run.result["environment"]["repeats_exactly"] is False
    config = load_config(run_copy / "config.yaml")
    assert config.search.trials is None
    assert config.search.seconds > 1


def test_a_limit_that_was_none_is_extended_from_what_was_done(run_copy):
    text = (run_copy / "config.yaml").read_text()
    (run_copy / "config.yaml").write_text(
        text.replace("trials: 2", "trials: null").replace("seconds: null", "seconds: 1")
    )
    run = api.resume(run_copy, trials="+1")
    assert sum(run.result["trials"].values()) == 3


def test_other_slots(run_copy):
    with pytest.raises(ConfigError, match="'gpu' is not a slot"):
        api.resume(run_copy, slots="gpu")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"trials": "many"}, "--trials: expected a number or .number, got 'many'"),
        ({"trials": "0"}, "--trials: expected more than 0, got 0"),
        ({"trials": "+0.5"}, r"search\.trials: .*valid integer"),
        ({"trials": "nan"}, r"search\.trials: .*finite number"),
        ({"seconds": "-5"}, "--time: expected more than 0, got -5"),
        ({"seconds": "soon"}, "--time: expected a number or .number, got 'soon'"),
    ],
)
def test_limits_that_make_no_sense(run_copy, limits, message):
    with pytest.raises(ConfigError, match=message):
        api.resume(run_copy, **limits)


def test_a_directory_that_is_no_run(tmp_path):
    for open_it in (api.resume, api.load_run):
        with pytest.raises(RunError):
            open_it(tmp_path)


@pytest.mark.parametrize(
    "change",
    [lambda wine: wine.assign(alcohol=0.0), lambda wine: wine.assign(target=(wine.target + 1) % 3)],
    ids=["a feature", "the labels"],
)
def test_data_that_changed_is_noticed(wine_config, tmp_path, change):
    wine = load_wine(as_frame=True).frame
    wine.to_csv(tmp_path / "wine.csv", index=False)
    values = {**wine_config, "data": str(tmp_path / "wine.csv"), "strategies": "linear_probe"}
    run = api.search({**values, "run_dir": str(tmp_path / "run"), "search": {"trials": 1, "max_epochs": 1}})
    change(wine).to_csv(tmp_path / "wine.csv", index=False)
    with pytest.raises(RunError, match=r"the data changed since .*start a new run, or restore the data"):
        api.resume(run.path, trials="+1")
