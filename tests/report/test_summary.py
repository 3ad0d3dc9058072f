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
    assert "layer1…" in text or "layer1=" in text
    assert "class_2" in text
    assert "2 trials complete, 0 pruned, 0 failed" in text
    assert "automl-tl predict runs/wine INPUT" in text
    assert "automl-tl resume runs/wine" in text


def lines(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_every_baseline_has_its_difference_to_ours_the_best_one_first(wine_result):
    scores = {"accuracy": 0.5, "recall_macro": 0.5, "f1_macro_ci95": [0.4, 0.6]}
    baselines = {
        "majority": {**scores, "f1_macro": 0.2, "gain_f1_macro": 0.7, "gain_f1_macro_ci95": [0.6, 0.8]},
        "full_finetuning": {**scores, "f1_macro": 0.95, "gain_f1_macro": -0.05, "gain_f1_macro_ci95": [-0.1, 0.01]},
        "of_an_older_run": {**scores, "f1_macro": 0.1},
    }
    text = lines(printed({**wine_result, "baselines": baselines, "missing_baselines": {"from_scratch": "no time"}}))
    row = next(number for number, line in enumerate(text) if line.startswith("full fine-tuning"))
    assert text[row] == "full fine-tuning 0.9500 0.400 … 0.600 -0.0500 -0.100 … +0.010"
    assert text[row + 1] == "majority 0.2000 0.400 … 0.600 +0.7000 +0.600 … +0.800"
    assert text[row + 2] == "of an older run 0.1000 0.400 … 0.600"
    assert "no baseline from scratch: no time" in text


def test_a_baseline_that_learned_from_a_part_of_the_samples_says_so(wine_result):
    n = wine_result["baselines"]["raw_inputs"]["n_train"]
    assert n == wine_result["task"]["n_train"] + wine_result["task"]["n_validation"]
    assert "learned from" not in printed(wine_result)
    text = printed({**wine_result, "task": {**wine_result["task"], "n_train": 47_000, "n_validation": 1000}})
    assert f"raw inputs learned from {n} of 48,000 samples" in " ".join(text.split())


@pytest.mark.parametrize(
    ("refits", "deviation", "said"),
    [
        (None, None, "there was no time to train it from others"),
        ([0.9], 0.0, "give the same model"),
        ([0.9, 0.8, 0.7], 0.1, "F1 of 3 has a standard deviation of 0.1000"),
    ],
)
def test_what_another_seed_would_have_changed(wine_result, refits, deviation, said):
    assert said in printed({**wine_result, "test": {**wine_result["test"], "refits": refits, "seed_sd": deviation}})


def gain_of(*classes):
    each = [
        {"name": name, "gain": gain, "interval": [gain, gain], "verdict": verdict} for name, gain, verdict in classes
    ]
    return {"rival": "raw_inputs", "gain": 0.1, "interval": [0.05, 0.15], "verdict": "positive", "per_class": each}


def test_transfer_names_the_classes_it_harmed_and_no_others(wine_result):
    gain = gain_of(("cat", 0.3, "positive"), ("[dog]", -0.2, "negative transfer"))
    text = printed({**best_of(wine_result, weights="transferred"), "transfer_gain": gain})
    assert "+0.1000 over raw inputs, +0.050 … +0.150: positive; negative at [dog] (-0.200)" in text
    assert "cat" not in text
    text = printed({**best_of(wine_result, weights="transferred"), "transfer_gain": gain_of()})
    assert "positive; worse at no class for sure" in text


def test_where_nothing_was_transferred_there_is_no_verdict_on_it(wine_result):
    text = printed({**best_of(wine_result, weights="random"), "transfer_gain": gain_of()})
    assert "the best model starts from random weights" in text
    assert "positive" not in text


@pytest.mark.parametrize(("gone_from", "said"), [(None, ""), ("c", "; gone from c on")])
def test_features_by_depth_are_one_line(wine_result, gone_from, said):
    gains = [{"layer_group": name, "gain": gain} for name, gain in (("a", 0.02), ("b", 0.4), ("c", 0.1), ("d", -0.1))]
    text = printed({**wine_result, "feature_gain_by_depth": gains, "feature_gain_gone_from": gone_from})
    wanted = f"by depth features gain +0.02 at a, at most +0.40 at b, -0.10 at d over random weights{said}"
    assert wanted in lines(text)


def test_how_much_the_validation_score_flatters(wine_result):
    confirmed = {**wine_result["validation"]["confirmed"], "optimism": 0.0123}
    number = wine_result["best"]["trial"]
    confirmed["finalists"] = [{"trial": n, "folds": 5, "f1_macro": 0.9} for n in (number, number + 1)]
    text = printed({**wine_result, "validation": {**wine_result["validation"], "confirmed": confirmed}})
    assert "f1_macro 0.9000, expected to flatter by 0.0123, because it is the best of 2" in text


@pytest.mark.parametrize(("share", "said"), [(0.5, "50% of the model"), (0.0, "left out")])
def test_what_training_was_worth_beside_frozen_features_is_told(wine_result, share, said):
    gain = {"gain": -0.012, "standard_error": 0.02, "log_loss_gain": 0.1, "log_loss_standard_error": 0.1}
    confirmed = {**wine_result["validation"]["confirmed"], "trained_gain": gain, "trained_share": share}
    text = printed({**wine_result, "validation": {**wine_result["validation"], "confirmed": confirmed}})
    assert f"networks -0.0120 ± 0.0200 beside frozen features: {said}" in lines(text)


@pytest.mark.parametrize(
    ("averaged", "said"),
    [
        ({"trials": [3, 5], "share": 1.0}, "model the averaged weights of trial 3, 5"),
        ({"trials": [3], "share": 0.5}, "model the averaged weights of trial 3, 50% of the way from where they began"),
    ],
)
def test_averaged_weights_are_told(wine_result, averaged, said):
    members = [{**wine_result["model"]["members"][0], "averaged": averaged}]
    text = printed({**wine_result, "model": {**wine_result["model"], "kind": "soup", "members": members}})
    assert said in lines(text)


@pytest.mark.parametrize("width", [80, 120])
def test_it_fits_one_screen(wine_result, width):
    """Also with all there is to say, and for many layer groups and classes."""
    classes = [f"class {number}" for number in range(40)]
    rows = [{**wine_result["test"]["per_class"][0], "class": name} for name in classes]
    gains = [{"layer_group": f"block{number}", "gain": number / 20} for number in range(18)]
    plan = [{"group": f"block{number}", "action": "freeze" if number < 9 else "tune"} for number in range(18)]
    names = ("majority", "raw_inputs", "random_weights", "from_scratch", "linear_probe", "full_finetuning")
    whole = {
        **best_of(wine_result, plan=plan, weights="transferred"),
        "test": {**wine_result["test"], "per_class": rows},
        "baselines": dict.fromkeys(names, wine_result["baselines"]["majority"]),
        "transfer_gain": gain_of(("class 7", -0.2, "negative transfer")),
        "feature_gain_by_depth": gains,
        "feature_gain_gone_from": None,
        "copies": "No two of 300 training samples are near-duplicates; none of 359 test samples has one among them.",
    }
    console = Console(file=io.StringIO(), width=width)
    print_result(console, whole, Path("runs/wine"))
    text = console.file.getvalue().splitlines()
    assert len(text) <= 45
    assert all(len(line) <= width for line in text)


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
    assert "result:  runs/[v1]/" in text
    assert "automl-tl resume 'runs/[v1]'" in text  # for a shell


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


def test_of_very_many_classes_the_lowest_are_shown(wine_result):
    row = wine_result["test"]["per_class"][0]
    rows = [{**row, "class": f"kind {number}", "f1": 1 - number / 100} for number in range(50)]
    text = printed({**wine_result, "test": {**wine_result["test"], "per_class": rows}})
    assert "kind 49 0.510, kind 48 0.520" in text
    assert "(of 50 classes)" in text
    assert "kind 30" not in text
