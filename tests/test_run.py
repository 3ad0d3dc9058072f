"""The story of a run: nothing before everything is known, one failure is one failure, and the source task's part."""

import io
import json
import shutil
import textwrap
from dataclasses import replace

import pytest
from rich.console import Console
from sklearn.datasets import load_wine

from automl_tl import api
from automl_tl.errors import ConfigError, DataError, PluginError, RunError, TrialError
from automl_tl.plugin import FreezingStrategy, GroupPlan, TransferPlan
from automl_tl.search.space import default_space

FRAGILE = """
    from automl_tl.plugin import Head, hookimpl

    def build(trial, *, in_features, n_outputs):
        from torch import nn
        if n_outputs > 2:  # the search only ever asked for a small one
            raise RuntimeError(f"I cannot tell {n_outputs} classes apart")
        return nn.Linear(in_features, n_outputs)

    @hookimpl
    def automl_tl_heads():
        return [Head(name="fragile", description="", build=build)]
"""


@pytest.fixture
def fragile(tmp_path):
    """A folder with a head that only fails in a trial."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "fragile.py").write_text(textwrap.dedent(FRAGILE))
    (folder / "broken.py").write_text("import no_such_library")
    return folder


def changed(config, tmp_path, **values):
    search = {**config["search"], **values.pop("search", {})}
    return {**config, "run_dir": str(tmp_path / "run"), "search": search, **values}


def test_a_plugin_that_fails_in_a_trial_costs_that_trial(wine_config, tmp_path, fragile):
    heads = iter(["linear", "fragile", "fragile", "linear"])

    def space(trial, context):
        return default_space(trial, replace(context, overrides={"head": next(heads)}))

    console = Console(file=io.StringIO(), width=80)
    config = changed(
        wine_config,
        tmp_path,
        heads=["linear", "fragile"],
        plugins={"dirs": [str(fragile)]},
        search={"trials": 4, "recipes": False},
    )
    result = api.search(config, console=console, space=space).result

    assert result["trials"] == {"complete": 2, "pruned": 0, "failed": 2}
    assert [failure["trial"] for failure in result["failures"]] == [1, 2]
    for failure in result["failures"]:
        assert failure["reason"].startswith(f"trial {failure['trial']} (source_mlp, ")
        assert failure["reason"].endswith("fragile): RuntimeError: I cannot tell 3 classes apart")
    assert result["best"]["head"]["name"] == "linear"
    lines = console.file.getvalue().splitlines()
    assert sum(line.startswith("warning: trial ") for line in lines) == result["trials"]["failed"]
    assert any(line.startswith("warning: plugin left out: broken (") for line in lines)


def test_a_plugin_may_be_edited_between_two_runs_of_one_process(wine_config, tmp_path, fragile):
    config = {**wine_config, "heads": "fragile", "plugins": {"dirs": [str(fragile)]}}
    with pytest.raises(TrialError):
        api.search({**config, "run_dir": str(tmp_path / "first")})
    (fragile / "fragile.py").write_text(textwrap.dedent(FRAGILE).replace("n_outputs > 2", "n_outputs > 3"))
    assert api.search({**config, "run_dir": str(tmp_path / "second")}).result["trials"]["complete"] == 2


def test_when_every_trial_fails_the_first_reason_is_quoted(wine_config, tmp_path, fragile):
    config = changed(wine_config, tmp_path, heads="fragile", plugins={"dirs": [str(fragile)]})
    with pytest.raises(
        TrialError, match=r"no trial was completed; the first failure: trial 0 \(.*\): RuntimeError: I cannot"
    ):
        api.search(config)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"data": "nowhere.csv"}, DataError, r"nowhere\.csv does not exist"),
        ({"backbones": "source_mpl"}, PluginError, "Did you mean 'source_mlp'"),
        (
            {"backbones": "source_cnn"},
            PluginError,
            "'source_cnn' reads image inputs, but the task's modality is tabular",
        ),
        ({"space": {"dropuot": 0.1}}, ConfigError, r"space\.dropuot: no such parameter\. Did you mean 'dropout'\?"),
        ({"space": {"optimizer": "adamm"}}, ConfigError, "got 'adamm'"),
        ({"slots": "gpu"}, ConfigError, "'gpu' is not a slot"),
        ({"search": {"metric": "f1_binary"}}, ConfigError, "task 'wine' has 3"),
    ],
)
def test_a_run_that_cannot_begin_leaves_nothing_behind(wine_config, tmp_path, values, error, message):
    with pytest.raises(error, match=message):
        api.search(changed(wine_config, tmp_path, **values))
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_holds_a_run_is_left_alone(wine_config, wine_run):
    with pytest.raises(RunError, match="already holds a run"):
        api.search({**wine_config, "run_dir": str(wine_run)})


def test_what_lies_in_a_run_directory(wine_run):
    files = {path.relative_to(wine_run).as_posix() for path in wine_run.rglob("*") if path.is_file()}
    assert {"config.yaml", "study.db", "plugins.json", "result.json", "log.txt"} <= files
    assert {"model/model.json", "model/model.safetensors", "trials/0/spec.json"} <= files
    assert not any(name.endswith(".partial") for name in files)
    assert json.loads((wine_run / "plugins.json").read_text())["last_k"].startswith("automl-tl ")


def test_only_the_best_trials_keep_their_checkpoints(wine_config, tmp_path):
    run = api.search(changed(wine_config, tmp_path, search={"trials": 3, "keep_checkpoints": 1, "max_epochs": 1}))
    kept = {int(path.parent.name) for path in run.path.glob("trials/*/model.safetensors")}
    assert run.result["best"]["trial"] in kept
    assert len(kept) <= 2  # the best, and the best linear probe


def test_plugins_and_a_space_made_in_python(wine_config, tmp_path):
    def plan(trial, groups, context):
        tuned = trial.suggest_categorical("tuned", [group.name for group in groups])
        return TransferPlan(
            tuple(GroupPlan(group=g.name, action="tune" if g.name == tuned else "freeze") for g in groups)
        )

    asked = []

    def space(trial, context):
        asked.append(context.n_train)
        return default_space(trial, context)

    config = changed(wine_config, tmp_path, strategies="surgical", search={"max_epochs": 1})
    strategy = FreezingStrategy(name="surgical", description="one group", plan=plan)
    run = api.search(config, plugins=[strategy], space=space)
    assert [group["action"] for group in run.result["best"]["plan"]].count("tune") == 1
    assert any("surgical@source_mlp.tuned" in trial.params for trial in run.study.trials)
    assert set(asked) == {114}
    assert api.load_run(run.path).result == run.result  # the model needs the strategy no more


def test_a_place_that_is_used_again_in_the_same_process_starts_afresh(wine_config, tmp_path):
    config = changed(wine_config, tmp_path, strategies="linear_probe", search={"trials": 1, "max_epochs": 1})
    first = api.search(config)
    shutil.rmtree(first.path)
    second = api.search({**config, "data": {"path": "sklearn:wine", "classes": ["class_0", "class_1"]}})
    assert second.result["trials"] == {"complete": 1, "pruned": 0, "failed": 0}
    X = load_wine().data[:130]
    assert set(second.predict(X)["class"]) <= {"class_0", "class_1"}


SOURCE = {
    "data": {"path": "sklearn:digits", "classes": ["0", "1", "2"], "per_class": 20, "test_fraction": 0.5},
    "backbone": "source_cnn",
    "epochs": 1,
}


@pytest.fixture
def source_config(wine_config, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOML_TL_CACHE", str(tmp_path / "cache"))
    return {
        "source": SOURCE,
        "data": {"path": "sklearn:digits", "classes": ["3", "4"], "per_class": 10, "image_size": 16},
        "strategies": ["linear_probe", "full_finetune"],
        "heads": "linear",
        "search": {"trials": 1, "max_epochs": 1},
        "slots": "inline",
        "run_dir": str(tmp_path / "run"),
    }


def test_a_source_task_is_trained_transferred_and_compared_with_random_weights(source_config, tmp_path):
    console = Console(file=io.StringIO(), width=120)
    result = api.search(source_config, console=console).result

    source = result["source"]
    assert source["backbone"] == "source_cnn"
    assert source["reused"] is False
    assert {"accuracy", "recall_macro", "f1_macro"} <= source.keys()
    assert result["best"]["weights"] == "transferred"
    transfer = result["transfer"]
    assert transfer["gain_f1_macro"] == pytest.approx(
        transfer["transferred"]["f1_macro"] - transfer["from_random"]["f1_macro"]
    )
    assert transfer["verdict"] in ("positive", "negative transfer", "inconclusive")
    assert transfer["trials_from_random"] == {"complete": 1, "pruned": 0, "failed": 0}
    assert {"source", "search", "search_from_random"} <= result["seconds"].keys()
    text = console.file.getvalue()
    assert "source task (source_cnn): held-back accuracy" in text
    assert "searching 1 trials from random weights" in text

    # The same source model again: another run, another target, the same cache.
    other = {**source_config, "run_dir": str(tmp_path / "other"), "strategies": "linear_probe"}
    again = api.search(other).result
    assert again["source"]["reused"] is True
    assert again["source"]["f1_macro"] == source["f1_macro"]
    weights = [tmp_path / name / "source" / "model.safetensors" for name in ("run", "other")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
