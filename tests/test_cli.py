"""The command line: every command on tiny data, and one clear message for whatever the user can mend."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_wine

from automl_tl import api
from automl_tl.config import load_config
from automl_tl.engine.lock import RunLock

FAST = ["--set", "backbones=source_mlp", "--set", "strategies=linear_probe", "--set", "heads=linear"]
FAST += ["--set", "search.max_epochs=1", "--trials", "1", "--slots", "inline"]


@pytest.fixture
def wine_csv(tmp_path):
    wine = load_wine(as_frame=True)
    table = wine.data.assign(cultivar=[f"class {target}" for target in wine.target])
    table.to_csv(tmp_path / "wine.csv", index=False)
    return tmp_path / "wine.csv"


@pytest.fixture
def run_copy(wine_run, tmp_path):
    return shutil.copytree(wine_run, tmp_path / "run")


@pytest.fixture
def pictures(tmp_path):
    """Folders of small pictures of two classes, that differ."""
    rng = np.random.default_rng(0)
    for label, low in (("dark", 0), ("light", 128)):
        folder = tmp_path / "pictures" / label
        folder.mkdir(parents=True)
        for index in range(12):
            pixels = rng.integers(low, low + 128, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "pictures"


def refused(answer, *parts):
    """Exit code 2, and one message without a traceback that says all this."""
    assert answer.code == 2, answer
    assert answer.err.startswith("error: ")
    assert "Traceback" not in answer.err + answer.out
    for part in parts:
        assert part in answer.err
    return answer.err.removeprefix("error: ").splitlines()


# Searching.


def test_search_a_table(cli, wine_csv, tmp_path):
    answer = cli("search", wine_csv, "--label", "cultivar", "--run-dir", tmp_path / "run", *FAST)
    assert (answer.code, answer.err) == (0, "")
    assert "task wine: multiclass, 3 classes" in answer.out
    assert "test split, 36 samples, opened once" in answer.out
    assert f"automl-tl predict {tmp_path / 'run'} INPUT" in answer.out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["task"]["classes"] == ["class 0", "class 1", "class 2"]


def test_search_a_configuration_with_options_that_beat_it(cli, wine_config, wine_csv, tmp_path):
    wine = pd.read_csv(wine_csv).iloc[::-1]
    wine.iloc[:60].to_csv(tmp_path / "held_back.csv", index=False)
    wine.iloc[60:].to_csv(tmp_path / "train.csv", index=False)
    config = {
        **wine_config,
        "data": {"path": "train.csv", "label": "nothing", "classes": ["class 0", "class 1"]},
        "seed": 3,
    }
    (tmp_path / "wine.yaml").write_text(yaml.safe_dump(config))
    answer = cli(
        "search", tmp_path / "wine.yaml", "--label", "cultivar", "--test", tmp_path / "held_back.csv", "--seed", 7,
        "--time", 60, "--run-dir", tmp_path / "run", *FAST,
    )  # fmt: skip
    assert (answer.code, answer.err) == (0, "")
    kept = load_config(tmp_path / "run" / "config.yaml")
    assert (kept.data.label, kept.data.test, kept.seed) == ("cultivar", str(tmp_path / "held_back.csv"), 7)
    assert (kept.search.trials, kept.search.seconds, kept.strategies) == (1, 60, ("linear_probe",))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["task"]["n_test"] == sum(wine.iloc[:60].cultivar != "class 2")
    assert result["environment"]["seed"] == 7


def test_search_pictures_and_predict_new_ones(cli, pictures, tmp_path):
    fast = [
        *FAST[4:],
        "--set",
        "backbones=source_cnn",
        "--set",
        "strategies=full_finetune",
        "--set",
        "data.image_size=16",
    ]
    answer = cli("search", pictures, "--run-dir", tmp_path / "run", *fast)
    assert (answer.code, answer.err) == (0, "")
    answer = cli("predict", tmp_path / "run", pictures / "dark", "--out", tmp_path / "said.csv")
    assert (answer.code, answer.err) == (0, "")
    said = pd.read_csv(tmp_path / "said.csv")
    assert sorted(said["id"]) == sorted(f"{index}.png" for index in range(12))
    assert set(said["class"]) <= {"dark", "light"}


def test_plugins_of_a_folder(cli, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "probe.py").write_text(
        "from automl_tl.plugin import FreezingStrategy, GroupPlan, TransferPlan, hookimpl\n"
        "def plan(trial, groups, context):\n"
        "    return TransferPlan(tuple(GroupPlan(group=g.name, action='freeze') for g in groups))\n"
        "@hookimpl\n"
        "def automl_tl_freezing_strategies():\n"
        "    return [FreezingStrategy(name='icy', description='all frozen', plan=plan)]\n"
    )
    answer = cli(
        "search", "sklearn:wine", "--plugins-dir", tmp_path / "mine", "--run-dir", tmp_path / "run", *FAST,
        "--set", "strategies=icy",
    )  # fmt: skip
    assert (answer.code, answer.err) == (0, "")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["best"]["strategy"] == "icy"
    assert cli("resume", tmp_path / "run", "--trials", "+1").code == 0


def test_a_dry_run_shows_everything_and_writes_nothing(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = cli("search", "sklearn:wine", "--dry-run", *FAST, "--set", "strategies=[last_k, suffix]")
    assert (answer.code, answer.err) == (0, "")
    assert "path: sklearn:wine" in answer.out
    assert "task wine: multiclass, 3 classes, 142 development, 36 test samples" in answer.out
    rows = [line.strip("│ ").split("│")[0].strip() for line in answer.out.splitlines() if line.startswith("│")]
    assert {"dropout", "adam.learning_rate", "last_k@source_mlp.k", "last_k", "suffix"} <= set(rows)
    assert "source_mlp: parameters that each strategy trains" in answer.out
    assert list(tmp_path.iterdir()) == []


def test_without_a_wish_the_run_lies_below_runs(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli("search", "sklearn:wine", *FAST).code == 0
    [run] = (tmp_path / "runs").iterdir()
    assert run.name.startswith("wine-")
    assert (run / "result.json").exists()


# Going on, showing, predicting.


def test_resume_with_more_trials_and_with_more_time(cli, run_copy):
    answer = cli("resume", run_copy, "--trials", "+2")
    assert (answer.code, answer.err) == (0, "")
    assert sum(json.loads((run_copy / "result.json").read_text())["trials"].values()) == 4
    answer = cli("resume", run_copy, "--time", "+5", "--slots", "inline")
    assert (answer.code, answer.err) == (0, "")
    assert sum(json.loads((run_copy / "result.json").read_text())["trials"].values()) > 4


def test_show(cli, wine_run, wine_result):
    answer = cli("show", wine_run)
    assert (answer.code, answer.err) == (0, "")
    assert f"{wine_result['test']['f1_macro']:.4f}" in answer.out
    assert "layer1=" in answer.out


def test_predictions_of_a_new_process_are_those_of_this_one(cli, wine_run, wine_csv, tmp_path):
    out = tmp_path / "said [1].csv"
    answer = cli("predict", wine_run, wine_csv, "--out", out)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == f"178 predictions: {out}\n"
    said = pd.read_csv(out)
    expected = api.load_run(wine_run).predict(wine_csv)
    pd.testing.assert_frame_equal(said, expected, check_dtype=False, rtol=1e-5)
    probabilities = said[[name for name in said if name.startswith("probability_")]]
    assert probabilities.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_a_process_that_knows_nothing_predicts_from_the_model_alone(wine_run, wine_csv, tmp_path):
    shutil.copytree(wine_run / "model", tmp_path / "kept" / "model")
    done = automl_tl("predict", tmp_path / "kept", wine_csv, "--out", tmp_path / "said.csv", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    expected = api.load_run(wine_run).predict(wine_csv)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "said.csv"), expected, check_dtype=False, rtol=1e-5)


def test_unreadable_inputs_can_be_skipped(cli, pictures, tmp_path):
    fast = [
        *FAST[4:],
        "--set",
        "backbones=source_cnn",
        "--set",
        "strategies=linear_probe",
        "--set",
        "data.image_size=16",
    ]
    assert cli("search", pictures, "--run-dir", tmp_path / "run", *fast).code == 0
    (pictures / "dark" / "3.png").write_text("no picture")
    refused(cli("predict", tmp_path / "run", pictures / "dark"), "dark/3.png cannot be read as an image")
    answer = cli("predict", tmp_path / "run", pictures / "dark", "--skip-bad", "--out", tmp_path / "said.csv")
    assert (answer.code, len(pd.read_csv(tmp_path / "said.csv"))) == (0, 11)


# What the user can mend.


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["nowhere.csv"], ["nowhere.csv does not exist"]),
        (["nowhere.yaml"], ["cannot read the configuration nowhere.yaml: No such file"]),
        (
            ["sklearn:wine", "--set", "strategies=last_kk"],
            ["no freezing strategy named 'last_kk'", "Did you mean 'last_k'?"],
        ),
        (["sklearn:wine", "--set", "space.dropuot=0.1"], ["space.dropuot: no such parameter. Did you mean 'dropout'?"]),
        (["sklearn:wine", "--set", "space.head=liner"], ["no head named 'liner'", "Did you mean 'linear'?"]),
        (["sklearn:wine", "--trials", "0"], ["the command line has 1 mistake", "search.trials: "]),
        (["sklearn:wine", "--set", "trials"], ["--set 'trials': expected KEY=VALUE"]),
        (["sklearn:wine", "--slots", "gpu"], ["'gpu' is not a slot"]),
        (["sklearn:wine", "--plugins-dir", "absent"], ["plugin directory", "absent does not exist"]),
        (["sklearn:whine"], ["whine"]),
    ],
    ids=lambda value: " ".join(value)[:30],
)
def test_mistakes_of_a_search(cli, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    target, *options = arguments
    refused(cli("search", target, *FAST, *options), *parts)
    assert list(tmp_path.iterdir()) == []


def test_all_mistakes_of_a_configuration_come_at_once(cli, tmp_path):
    (tmp_path / "bad.yaml").write_text("data: {paht: x, lable: y}\nserach: {}\nsearch: {trails: 3, max_epochs: 0}\n")
    lines = refused(cli("search", tmp_path / "bad.yaml"))
    assert lines[0].endswith("bad.yaml has 6 mistakes:")
    text = "\n".join(lines)
    for suggestion in ("'path'", "'label'", "'search'", "'trials'"):
        assert f"Did you mean {suggestion}?" in text
    assert "data.path: required, but missing" in text


@pytest.mark.parametrize(
    ("content", "part"),
    [(b"a: [", "is not valid YAML"), (b"just text", "must be a mapping"), (b"\xff\xfe\x00", "is not a text file")],
)
def test_a_file_that_is_no_configuration(cli, tmp_path, content, part):
    (tmp_path / "bad.yaml").write_bytes(content)
    refused(cli("search", tmp_path / "bad.yaml"), "bad.yaml", part)


def test_a_run_directory_that_is_taken(cli, wine_run, pictures):
    refused(cli("search", "sklearn:wine", "--run-dir", wine_run, *FAST), "already holds a run", f"resume {wine_run}")
    refused(cli("search", "sklearn:wine", "--run-dir", pictures, *FAST), "is not empty and holds no run")


def test_a_run_that_another_process_works_on(cli, run_copy):
    with RunLock(run_copy / "lock"):
        refused(cli("resume", run_copy, "--trials", "+1"), f"{run_copy} is in use by process {os.getpid()}")


@pytest.mark.parametrize("command", ["resume", "show"])
def test_what_is_no_run(cli, tmp_path, command):
    for path in (tmp_path, tmp_path / "absent"):
        refused(cli(command, path), f"{path} is not a run directory; expected a config.yaml in it")


@pytest.mark.parametrize("wrong", ["many", "-3", "+0.5", "nan"])
def test_resume_by_something_that_is_no_number(cli, run_copy, wrong):
    refused(cli("resume", run_copy, f"--trials={wrong}"), "trials")


def test_an_unfinished_run_has_nothing_to_show_or_to_predict_with(cli, run_copy, wine_csv):
    (run_copy / "result.json").unlink()
    shutil.rmtree(run_copy / "model")
    refused(cli("show", run_copy), "has no result yet; finish it with: automl-tl resume")
    refused(cli("predict", run_copy, wine_csv), "holds no trained model", "the search has not finished: resume it")


def test_a_model_that_is_damaged(cli, run_copy, wine_csv):
    weights = run_copy / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(cli("predict", run_copy, wine_csv), f"{weights} is damaged")
    (run_copy / "model" / "model.json").write_bytes(b"\xff\x00")
    refused(cli("predict", run_copy, wine_csv), "model.json is damaged")


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("absent.csv", None, "absent.csv does not exist"),
        ("new.csv", "alcohol\n1.0\n", "lacks the columns 'malic_acid'"),
        ("new.csv", "", "new.csv is empty"),
        ("new.npz", "no arrays", "new.npz cannot be read as an .npz file"),
        ("new.doc", "text", "has the unknown suffix '.doc'"),
        ("new.png", "no picture", "holds images, but the training inputs were tabular ones"),
    ],
)
def test_inputs_that_cannot_be_read(cli, wine_run, tmp_path, name, content, part):
    if content is not None:
        (tmp_path / name).write_text(content)
    refused(cli("predict", wine_run, tmp_path / name, "--out", tmp_path / "said.csv"), part)
    assert not (tmp_path / "said.csv").exists()


def test_predictions_that_cannot_be_written(cli, wine_run, wine_csv, tmp_path):
    answer = cli("predict", wine_run, wine_csv, "--out", tmp_path / "absent" / "said.csv")
    refused(answer, "cannot write", "non-existent directory", "choose another place with --out")


def test_data_that_cannot_be_learnt(cli, pictures, wine_csv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (pictures / "dark" / "7.png").write_bytes((pictures / "dark" / "7.png").read_bytes()[:50])
    refused(cli("search", pictures), "dark/7.png cannot be read as an image", "set data.on_bad_sample: skip")

    wine = pd.read_csv(wine_csv)
    wine.assign(cultivar="same").to_csv("constant.csv", index=False)
    refused(cli("search", "constant.csv", "--label", "cultivar"), "is constant (same); at least 2 classes are needed")

    wine[wine.cultivar != "class 2"].to_csv("train.csv", index=False)
    answer = cli("search", "train.csv", "--label", "cultivar", "--test", wine_csv)
    refused(answer, "the label 'class 2' of the test split", "was never seen in the training data")

    refused(cli("search", wine_csv, "--label", "cultivra"), "has no column 'cultivra'", "Did you mean 'cultivar'?")


def test_words_that_are_no_command(cli):
    for arguments in (["serach"], ["search"], ["search", "x.csv", "--trails", "3"]):
        answer = cli(*arguments)
        assert answer.code == 2
        assert "Traceback" not in answer.err


# The program itself.


def automl_tl(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "automl_tl", *map(str, arguments)], capture_output=True, text=True, cwd=cwd
    )


def test_version_and_help(cli):
    assert cli("--version").out.startswith("automl-tl 0.")
    for command in ("search", "resume", "show", "predict", "plugins"):
        assert command in cli("--help").out
        assert cli(command, "--help").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["search", "--help"], ["plugins", "list"]], ids=" ".join)
def test_help_and_the_list_of_plugins_load_nothing_heavy(arguments):
    code = f"""
import sys
sys.argv = ["automl-tl", *{arguments}]
from automl_tl.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = {{"torch", "optuna", "sklearn", "pandas", "scipy"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_an_interrupt_ends_with_130(cli, monkeypatch, wine_config):
    def interrupt(*arguments, **settings):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("automl_tl.api.show", interrupt)
    answer = cli("show", "anywhere")
    assert answer.code == 130
    assert "Traceback" not in answer.err
