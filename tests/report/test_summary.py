"""The tables at the end: what a person reads, with names that look like markup."""

import copy
import io
from pathlib import Path

import pytest
from rich.console import Console

from automl_tl.report.summary import print_result


def printed(result, directory=Path("runs/wine")):
    console = Console(file=io.StringIO(), width=160)
    print_result(console, result, directory)
    return console.file.getvalue()


def test_scores_plan_and_next_steps(wine_result):
    text = printed(wine_result)
    assert "wine: test split, 36 samples, opened once" in text
    for row in ("best model", "majority", "raw inputs", "linear probe"):
        assert row in text
    assert f"{wine_result['test']['f1_macro']:.4f}" in text
    assert "layer1=" in text
    assert "class_2" in text
    assert "2 trials complete, 0 pruned, 0 failed" in text
    assert "automl-tl predict runs/wine INPUT" in text
    assert "automl-tl resume runs/wine" in text


def best_of(result, **changes):
    return {**result, "best": {**result["best"], **changes}}


@pytest.mark.parametrize(
    ("changes", "said", "unsaid"),
    [
        (
            {"fit": "ridge", "strength": 0.125, "joined": ["layer1"], "pooling": "mean_std"},
            ["ridge, solved for, strength 0.125 chosen by left-out samples", "layer1 beside layer3, mean and spread"],
            ["learning rate"],
        ),
        ({"fit": "descent", "joined": [], "pooling": "mean"}, ["learning rate", "reads layer3"], ["solved for"]),
    ],
)
def test_how_the_head_was_found_and_what_it_reads(wine_result, changes, said, unsaid):
    plan = [{**group, "action": "freeze"} for group in wine_result["best"]["plan"]]
    text = printed(best_of(wine_result, plan=plan, **changes))
    assert all(words in text for words in said)
    assert not any(words in text for words in unsaid)


@pytest.mark.parametrize(
    ("augmentation", "views", "said"),
    [
        ("light", 4, "augmentation light in 4 stored views,"),
        ("light", 0, "augmentation light,"),
        ("none", 4, "augmentation none,"),
    ],
)
def test_views_are_told_where_there_are_some(wine_result, augmentation, views, said):
    keeps = {**wine_result["best"]["regularization"], "augmentation": augmentation, "views": views}
    assert said in printed(best_of(wine_result, fit="descent", regularization=keeps))


def test_names_are_not_taken_for_markup(wine_result):
    result = copy.deepcopy(wine_result)
    result["task"]["name"] = "[bold]pets"
    result["test"]["per_class"][0]["class"] = "[/b] left"
    text = printed(result, Path("runs/[v1]"))
    assert "[bold]pets: test split" in text
    assert "[/b] left" in text
    assert "automl-tl resume runs/[v1]" in text


def test_paths_are_never_broken_over_lines(wine_result):
    console = Console(file=io.StringIO(), width=40)
    directory = Path("a/" * 60) / "run"
    print_result(console, wine_result, directory)
    assert f"automl-tl predict {directory} INPUT" in console.file.getvalue()


@pytest.mark.parametrize(("verdict", "gain"), [("positive", "+0.1000"), ("negative transfer", "-0.1000")])
def test_transfer_beside_random_weights(wine_result, verdict, gain):
    scores = {"f1_macro": 0.9, "f1_macro_ci95": [0.8, 1.0], "accuracy": 0.9, "recall_macro": 0.9}
    transfer = {
        "transferred": scores,
        "from_random": scores,
        "gain_f1_macro": float(gain),
        "gain_f1_macro_ci95": [-0.2, 0.2],
        "verdict": verdict,
    }
    text = printed({**wine_result, "transfer": transfer})
    assert "source → target" in text
    assert verdict in text
    assert gain in text


def test_without_a_test_split_there_are_no_scores(wine_result):
    text = printed({**wine_result, "test": None})
    assert "test split" not in text
    assert "what to transfer, and how" in text


def test_a_table_of_very_many_classes_is_left_out(wine_result):
    classes = [f"class {number}" for number in range(50)]
    text = printed({**wine_result, "task": {**wine_result["task"], "classes": classes}})
    assert "by class" not in text
