from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score

from automl_tl.finish.verdict import judge, transfer_verdict

CLASSES = ("ant", "bee", "cat", "dog")


def answers(rng, labels, skill):
    """Right as often as the skill, of all samples or of each class."""
    right = rng.random(len(labels)) < np.broadcast_to(skill, len(CLASSES))[labels]
    return np.where(right, labels, (labels + rng.integers(1, 4, len(labels))) % 4)


@pytest.fixture
def labels():
    return np.arange(400) % 4


@pytest.mark.parametrize(("skill", "verdict"), [(0.9, "positive"), (0.7, "inconclusive"), (0.5, "negative transfer")])
def test_a_verdict_is_of_the_difference_to_the_best_rival(labels, skill, verdict):
    rng = np.random.default_rng(0)
    baselines = {
        "majority": np.zeros(400, dtype=int),
        "scratch": answers(rng, labels, 0.7),
        "raw": answers(rng, labels, 0.3),
    }
    transferred = answers(rng, labels, skill)
    found = transfer_verdict(labels, transferred, baselines, "multiclass", CLASSES)
    assert (found.rival, found.verdict) == ("scratch", verdict)
    expected = [f1_score(labels, said, average="macro") for said in (transferred, baselines["scratch"])]
    assert found.gain == pytest.approx(expected[0] - expected[1])
    assert found.interval[0] <= found.gain <= found.interval[1]


def test_harm_to_one_class_shows_where_the_whole_gains(labels):
    rng = np.random.default_rng(0)
    transferred = answers(rng, labels, [0.97, 0.97, 0.97, 0.45])
    found = transfer_verdict(labels, transferred, {"scratch": answers(rng, labels, 0.72)}, "multiclass", CLASSES)
    assert found.verdict == "positive"
    assert found.harmed() == () or found.harmed() == ("dog",)
    transferred = np.where(labels == 3, 0, labels)
    found = transfer_verdict(labels, transferred, {"scratch": answers(rng, labels, 0.72)}, "multiclass", CLASSES)
    assert found.harmed() == ("dog",)
    per_class = {each.name: each for each in found.per_class}
    assert per_class["dog"].gain < -0.5
    assert per_class["bee"].verdict == "positive"


def test_equal_models_are_seldom_told_apart():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 4
    told, classes = 0, 0
    for seed in range(60):
        said = [answers(rng, labels, 0.8) for _ in range(2)]
        found = transfer_verdict(labels, said[0], {"rival": said[1]}, "multiclass", CLASSES, seed=seed)
        told += found.verdict != "inconclusive"
        classes += any(each.verdict != "inconclusive" for each in found.per_class)
    assert told <= 8
    assert classes <= 8


def test_bad_transfer_is_flagged_and_good_is_not():
    """A gain or loss of 0.15 at 300 samples, which a source of shuffled labels easily loses."""
    rng = np.random.default_rng(1)
    labels = np.arange(300) % 4
    bad = good = 0
    for seed in range(20):
        scratch = answers(rng, labels, 0.7)
        for skill in (0.55, 0.85):
            found = transfer_verdict(
                labels, answers(rng, labels, skill), {"scratch": scratch}, "multiclass", CLASSES, seed=seed
            )
            bad += found.verdict == "negative transfer" and skill < 0.7
            good += found.verdict == "positive" and skill > 0.7
    assert bad >= 18
    assert good >= 18


def test_the_doubt_of_refits_can_leave_a_gain_open(labels):
    rng = np.random.default_rng(0)
    said, rival = answers(rng, labels, 0.9), {"scratch": answers(rng, labels, 0.75)}
    assert transfer_verdict(labels, said, rival, "multiclass", CLASSES).verdict == "positive"
    assert transfer_verdict(labels, said, rival, "multiclass", CLASSES, seed_sd=0.2).verdict == "inconclusive"


def test_several_labels_a_sample_and_plain_data():
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 4)) < 0.4).astype(np.int64)
    good, bad = (np.logical_xor(labels, rng.random(labels.shape) < share).astype(np.int64) for share in (0.05, 0.3))
    found = transfer_verdict(labels, good, {"raw": bad}, "multilabel", CLASSES)
    assert found.verdict == "positive"
    values = json.loads(json.dumps(found.to_json()))
    assert values["interval"] == list(found.interval)
    assert [each["name"] for each in values["per_class"]] == list(CLASSES)
    assert values["per_class"][0]["verdict"] == "positive"


def test_an_interval_that_holds_0_is_inconclusive():
    assert [judge(held) for held in ((0.1, 0.2), (-0.1, 0.1), (0.0, 0.1), (-0.2, -0.1))] == [
        "positive",
        "inconclusive",
        "inconclusive",
        "negative transfer",
    ]
