"""What there is time to learn from: all samples, or a part that holds every class and whole groups."""

import io

import numpy as np
import pytest
from rich.console import Console

from automl_tl import api, run
from automl_tl.config import DataConfig
from automl_tl.data import load_task, task_from_python
from automl_tl.search import part as module
from automl_tl.search.part import LEAST, SHARE, SLOW, part_of, seconds_to_pass, share_in_time, surely_in_time


def ids(*splits):
    return {name for split in splits for name in split.samples.ids}


@pytest.fixture(scope="module")
def digits():
    return load_task(DataConfig(path="sklearn:digits"), seed=0)


def test_few_samples_and_runs_without_a_limit_need_no_look(digits):
    n = len(digits.train) + len(digits.validation)
    enough = n * SLOW / SHARE
    assert surely_in_time(digits, 1, None)
    assert surely_in_time(digits, 1, enough + 0.1)
    assert not surely_in_time(digits, 1, enough - 0.1)
    assert surely_in_time(digits, 2, enough / 2 + 0.1)
    few = load_task(DataConfig(path="sklearn:iris"), seed=0)
    assert surely_in_time(few, 1, 0.001)


def test_the_share_is_what_passes_in_time_and_never_next_to_nothing(digits):
    n = len(digits.train) + len(digits.validation)
    assert share_in_time(digits, 10.0, 10.0) == 1.0
    assert share_in_time(digits, 20.0, 10.0) == 0.5
    assert share_in_time(digits, 1e9, 10.0) == share_in_time(digits, 1e9, -3.0) == LEAST / n


@pytest.mark.parametrize("share", [0.9, 0.4, 0.05])
def test_a_part_has_every_class_in_its_share_and_leaves_the_test_split_alone(digits, share):
    part = part_of(digits, share, seed=3)
    for some, whole in ((part.train, digits.train), (part.validation, digits.validation)):
        assert ids(some) <= ids(whole)
        assert len(some) == pytest.approx(share * len(whole), abs=1)
        assert np.abs(np.bincount(some.labels) - share * np.bincount(whole.labels)).max() <= 1.5
        assert [digits.classes[label] for label in some.labels] == [
            dict(zip(whole.samples.ids, (digits.classes[label] for label in whole.labels), strict=True))[name]
            for name in some.samples.ids
        ]
    assert part.test is digits.test
    assert part.left_out == len(digits.train) + len(digits.validation) - len(part.train) - len(part.validation)
    assert ids(part.train) == ids(part_of(digits, share, seed=3).train) != ids(part_of(digits, share, seed=4).train)


def test_groups_are_taken_whole():
    frame = {"x": list(range(300)), "y": ["a", "b"] * 150, "who": [f"p{number // 10}" for number in range(300)]}
    import pandas as pd

    task = task_from_python(pd.DataFrame(frame), config=DataConfig(path="data", label="y", group="who"), seed=0)
    part = part_of(task, 0.5, seed=0)
    assert 0 < len(part.train) < len(task.train)
    for group in np.unique(part.train.groups):
        assert (part.train.groups == group).sum() == (task.train.groups == group).sum()


def test_what_is_stored_takes_no_time(make_picture_search, crew):
    search = make_picture_search()
    files = search.prepared.files(search.host.backbone("trained0"), "development")

    def foreseen():
        known = (search.host, search.host.backbone("trained0"), search.stored["trained0"], files, crew)
        return seconds_to_pass(*known, lambda *_: None, sitting=search.clock.began)

    assert foreseen() > 0
    assert foreseen() == 0


def test_a_run_learns_from_what_there_is_time_for_and_stays_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOML_TL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "SLOW", 1e9)
    monkeypatch.setattr(run, "SHARE", -1.0)
    config = {
        "data": {"path": "sklearn:digits", "image_size": 16},
        "backbones": "mobilenet_v2",
        "strategies": "linear_probe",
        "heads": "linear",
        "search": {"trials": 1, "seconds": 3600, "max_epochs": 1},
        "slots": "inline",
        "run_dir": str(tmp_path / "run"),
    }
    console = Console(file=io.StringIO(), width=100)
    task = api.search(config, console=console).result["task"]
    learnt = task["n_train"] + task["n_validation"]
    assert learnt == pytest.approx(LEAST, abs=2)
    assert task["n_left_out"] == 1797 - task["n_test"] - learnt
    assert f"learned from {learnt:,} of {learnt + task['n_left_out']:,}" in console.file.getvalue()

    monkeypatch.undo()  # there is time enough now, but the run has begun
    monkeypatch.setenv("AUTOML_TL_CACHE", str(tmp_path / "cache"))
    assert api.resume(tmp_path / "run", trials="+1").result["task"] == task
