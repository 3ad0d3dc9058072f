"""Unlabeled samples from the command line, from Python and in the estimator."""

import io

import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console
from sklearn.datasets import load_wine

from automl_tl import TransferSearch, api
from automl_tl.errors import DataError

SOURCE = {"data": {"path": "sklearn:wine", "classes": ["class_0", "class_1"]}, "backbone": "source_mlp", "epochs": 2}


@pytest.fixture
def more_wine(tmp_path):
    """The path of wines that nobody has labeled."""
    rows = load_wine().data[:60] * 1.01
    np.savez(tmp_path / "more.npz", x=rows)
    return tmp_path / "more.npz"


def test_a_run_learns_from_them(wine_config, more_wine, tmp_path):
    said = Console(file=io.StringIO(), width=200)
    config = {**wine_config, "source": SOURCE, "strategies": ["linear_probe"], "run_dir": str(tmp_path / "run")}
    config |= {"search": {"trials": 3, "max_epochs": 1}, "finish": {"refits": 1}, "space": {"unlabeled": "propagation"}}
    finished = api.search(config, unlabeled=more_wine, console=said)
    heard = said.file.getvalue()
    assert "60 of 60 unlabeled samples have passed source_mlp" in heard
    assert "unlabeled samples: the best probe that learns from them has f1_macro" in heard
    numbers = [trial.user_attrs.get("unlabeled_samples") for trial in finished.study.trials]
    assert numbers[0] is None  # the first probe does not wait for them
    assert 60 in numbers
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["unlabeled"] == str(more_wine)


def test_a_path_that_is_not_there_ends_before_anything_is_written(cli, tmp_path):
    answer = cli("search", "sklearn:wine", "--unlabeled", tmp_path / "no.npz", "--run-dir", tmp_path / "run")
    assert answer.code == 2
    assert "no.npz does not exist" in answer.err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_how_many_there_are(cli, more_wine):
    answer = cli("search", "sklearn:wine", "--unlabeled", more_wine, "--set", "backbones=source_mlp", "--dry-run")
    assert "60 unlabeled samples of" in answer.out.replace("\n", " ")


def estimator():
    settings = {"n_trials": 1, "max_epochs": 1, "slots": "inline", "backbones": ["source_mlp"], "heads": ["linear"]}
    return TransferSearch(**settings, strategies=["full_finetune"], random_state=0)


def test_the_estimator_takes_what_it_takes_as_x():
    x, y = load_wine(return_X_y=True)
    fitted = estimator().fit(x[::2], y[::2], unlabeled=x[1::2])
    assert fitted.predict(x).shape == y.shape
    frame = pd.DataFrame({"text": [f"red wine {number}" for number in range(20)]})
    with pytest.raises(ValueError, match="features"):
        estimator().fit(x, y, unlabeled=x[:, :3])
    with pytest.raises(DataError):
        estimator().fit(x, y, unlabeled=frame)
