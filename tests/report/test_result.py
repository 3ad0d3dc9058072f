"""`result.json` of a real run: its keys, and that its numbers fit together."""

import json
from itertools import pairwise

import pytest

KEYS = {
    "schema_version": None,
    "task": {"name", "modality", "kind", "classes", "n_train", "n_validation", "n_test"},
    "metric": None,
    "validation": {"f1_macro"},
    "test": {
        "f1_macro", "f1_macro_ci95", "f1_micro", "f1_weighted", "accuracy", "precision_macro", "recall_macro",
        "per_class", "confusion", "seed_sd", "seeds_missing", "refits",
    },
    "best": {
        "trial", "backbone", "strategy", "plan", "head", "fit", "pooling", "joined", "strength", "inputs",
        "regularization", "optimizer", "trainable_parameters", "total_parameters",
    },
    "baselines": {"majority", "raw_inputs", "linear_probe"},
    "missing_baselines": None,
    "feature_gain_by_depth": None,
    "feature_gain_gone_from": None,
    "trials": {"complete", "pruned", "failed"},
    "failures": None,
    "store": {"directory", "rows_passed", "rows_passed_in"},
    "seconds": {"total"},
    "incumbents": None,
    "environment": {"automl_tl", "python", "torch", "optuna", "seed", "slots", "plugins", "repeats_exactly"},
}  # fmt: skip


def test_the_keys_that_readers_rely_on(wine_result):
    assert KEYS.keys() <= wine_result.keys()
    for name, keys in KEYS.items():
        assert keys is None or keys <= wine_result[name].keys()
    assert wine_result["schema_version"] == 1


def test_it_is_plain_json_without_infinities(wine_run):
    json.loads((wine_run / "result.json").read_text(), parse_constant=pytest.fail)


def test_the_task(wine_result):
    task = wine_result["task"]
    assert (task["name"], task["modality"], task["kind"]) == ("wine", "tabular", "multiclass")
    assert task["classes"] == ["class_0", "class_1", "class_2"]
    assert task["n_train"] + task["n_validation"] + task["n_test"] == 178


def test_scores_fit_together(wine_result):
    test, task = wine_result["test"], wine_result["task"]
    low, high = test["f1_macro_ci95"]
    assert 0 <= low <= test["f1_macro"] <= high <= 1
    assert test["f1_macro"] == pytest.approx(sum(row["f1"] for row in test["per_class"]) / 3)
    assert sum(map(sum, test["confusion"])) == sum(row["support"] for row in test["per_class"]) == task["n_test"]
    assert test["accuracy"] == pytest.approx(sum(test["confusion"][k][k] for k in range(3)) / task["n_test"])
    assert len(test["refits"]) == 3  # random weights differ from seed to seed, also frozen ones
    assert test["refits"][0] == test["f1_macro"]
    assert test["seed_sd"] >= 0
    for scores in wine_result["baselines"].values():
        assert {"f1_macro", "f1_macro_ci95", "accuracy", "recall_macro"} <= scores.keys()
        low, high = scores["gain_f1_macro_ci95"]
        assert low <= scores["gain_f1_macro"] <= high
        assert scores["gain_f1_macro"] == pytest.approx(test["f1_macro"] - scores["f1_macro"])
    assert wine_result["baselines"]["majority"]["f1_macro"] < 0.4


def test_passes_of_frozen_layers_are_counted_by_what_they_were_for(wine_result):
    store = wine_result["store"]
    assert store["rows_passed"] == sum(store["rows_passed_in"].values())
    assert store["rows_passed_in"].keys() == {"survey", "trials", "finish"}
    assert store["rows_passed_in"]["survey"] == 0  # no weights are transferred here, so no backbone is scored


def test_the_best_trial(wine_result):
    best = wine_result["best"]
    assert [(group["group"], set(group) >= {"group", "action"}) for group in best["plan"]] == [
        (f"layer{number}", True) for number in (1, 2, 3)
    ]
    assert best["head"] == {"name": "linear"}
    assert {"dropout", "weight_decay", "label_smoothing", "l2_sp", "patience"} <= best["regularization"].keys()
    assert {"optimizer", "learning_rate", "batch_size"} <= best["optimizer"].keys()
    assert 0 < best["trainable_parameters"] <= best["total_parameters"]
    assert best["weights"] == "random"  # nobody published weights of this backbone


def test_incumbents_rise_to_the_best(wine_result):
    scores = [score for _, _, score in wine_result["incumbents"]]
    assert all(before < after for before, after in pairwise(scores))
    assert scores[-1] >= wine_result["validation"]["f1_macro"] - 1e-9
    assert all(seconds > 0 for seconds, _, _ in wine_result["incumbents"])


def test_counts_and_seconds(wine_result):
    assert wine_result["trials"] == {"complete": 2, "pruned": 0, "failed": 0}
    assert wine_result["failures"] == []
    seconds = dict(wine_result["seconds"])
    assert seconds.pop("total") == pytest.approx(sum(seconds.values()), abs=0.1)
    assert {"load", "prepare", "search", "settle", "compare", "finish"} == seconds.keys()


def test_the_environment_says_whether_it_repeats(wine_result):
    environment = wine_result["environment"]
    assert environment["repeats_exactly"] is True
    assert environment["slots"] == ["inline"]
    assert environment["plugins"]["last_k"].startswith("automl-tl ")
