from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from automl_tl.finish.adjust import (
    Adjustment,
    class_biases,
    fit_adjustment,
    fit_temperature,
    fold_rows,
    label_biases,
    log_losses,
    prior_correction,
)
from automl_tl.metrics.scores import log_loss, validation_score


def classified(rng, sizes, signal=1.5, prior=True):
    """Labels of classes of such sizes and the true probabilities of each, in random order."""
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    logits = rng.normal(size=(len(labels), len(sizes)))
    logits[np.arange(len(labels)), labels] += signal
    return labels, softmax(signal * logits + (np.log(np.array(sizes)) if prior else 0), axis=1)


def multilabel(rng, n, shares):
    labels = (rng.random((n, len(shares))) < shares).astype(np.int64)
    odds = np.log(np.array(shares) / (1 - np.array(shares)))
    return labels, 1 / (1 + np.exp(-(2 * (2 * labels - 1 + rng.normal(size=labels.shape)) + odds)))


def macro(labels, probabilities, kind="multiclass"):
    return validation_score(labels, probabilities, kind, "f1_macro")


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_boasting_and_timidity(sharpness):
    labels, true = classified(np.random.default_rng(0), [200, 200, 200])
    said = softmax(sharpness * np.log(true), axis=1)
    assert fit_temperature(labels, said, "multiclass") == pytest.approx(sharpness, rel=0.15)


def test_the_temperature_of_several_labels_a_sample():
    labels, true = multilabel(np.random.default_rng(0), 600, [0.3, 0.5])
    odds = 3 * np.log(true / (1 - true))
    assert fit_temperature(labels, 1 / (1 + np.exp(-odds)), "multilabel") == pytest.approx(3, rel=0.15)


@given(st.integers(0, 10_000), st.sampled_from(["multiclass", "multilabel"]))
@settings(deadline=None, max_examples=25)
def test_a_temperature_lowers_log_loss_and_moves_no_decision(seed, kind):
    rng = np.random.default_rng(seed)
    labels, said = classified(rng, [30, 30, 30]) if kind == "multiclass" else multilabel(rng, 90, [0.3, 0.6])
    found = Adjustment(temperature=fit_temperature(labels, said, kind))
    after = found.apply(said, kind)
    assert log_loss(labels, after) <= log_loss(labels, said) + 1e-3  # but for the sample of doubt
    assert macro(labels, after, kind) == macro(labels, said, kind)


def test_a_faultless_model_keeps_a_finite_temperature():
    labels = np.arange(60) % 3
    found, _ = fit_adjustment(labels, np.eye(3)[labels], "multiclass")
    after = found.apply(np.eye(3)[labels], "multiclass")
    assert np.isfinite(after).all()
    assert macro(labels, after) == 1


def test_a_rare_class_is_found_more_often_where_that_raises_the_metric():
    labels, said = classified(np.random.default_rng(0), [900, 60, 60])
    new_labels, new = classified(np.random.default_rng(1), [900, 60, 60])
    found, expected = fit_adjustment(labels, said, "multiclass")
    assert found.bias[0] < min(found.bias[1:])
    assert expected > 0
    gain = macro(new_labels, found.apply(new, "multiclass")) - macro(new_labels, new)
    assert gain > 0.005
    assert expected == pytest.approx(gain, abs=0.06)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_where_nothing_is_to_be_gained_little_is_lost(kind):
    changes = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        sets = [
            classified(rng, [n, n, n]) if kind == "multiclass" else multilabel(rng, 3 * n, [0.5, 0.5])
            for n in (60, 1000)
        ]
        found, _ = fit_adjustment(*sets[0], kind, seed=seed)
        labels, said = sets[1]
        changes.append(macro(labels, found.apply(said, kind), kind) - macro(labels, said, kind))
    assert np.mean(changes) > -0.002
    assert min(changes) > -0.02


def test_prior_correction_is_one_number_times_the_log_prior():
    labels, said = classified(np.random.default_rng(0), [300, 60, 15])
    bias = prior_correction(labels, np.log(said), "multiclass", "f1_macro")
    prior = (np.array([300, 60, 15]) + 0.5) / 376
    taus = -bias / np.log(prior)
    assert taus == pytest.approx(np.full(3, taus[0]))
    assert 0 < taus[0] <= 1.5
    assert macro(labels, np.log(said) + bias) > macro(labels, said)


@given(st.integers(0, 10_000), st.sampled_from(["f1_macro", "f1_micro", "f1_weighted"]))
@settings(deadline=None, max_examples=20)
def test_class_biases_never_lower_what_they_are_tuned_on(seed, metric):
    labels, said = classified(np.random.default_rng(seed), [90, 30, 20, 10])
    bias = class_biases(labels, np.log(said), metric)
    before, after = (
        validation_score(labels, logits, "multiclass", metric) for logits in (np.log(said), np.log(said) + bias)
    )
    assert after >= before
    assert bias.mean() == pytest.approx(0)


def test_class_biases_undo_a_shift_of_one_class():
    labels, said = classified(np.random.default_rng(0), [200, 200, 200])
    logits = np.log(said) + np.array([1.5, 0, 0])
    bias = class_biases(labels, logits, "f1_macro")
    assert bias[0] < bias[1:].min() - 1
    assert macro(labels, logits + bias) > macro(labels, logits) + 0.02


def test_each_label_has_its_own_threshold_and_rare_ones_keep_theirs():
    labels, said = multilabel(np.random.default_rng(0), 800, [0.1, 0.5, 0.01])
    logits = np.log(said / (1 - said)) - np.array([2, 0, 2])
    bias = label_biases(labels, logits)
    assert bias[0] > 1
    assert bias[2] == 0
    found, gain = fit_adjustment(labels, 1 / (1 + np.exp(-logits)), "multilabel")
    assert gain > 0
    assert macro(labels, found.apply(1 / (1 + np.exp(-logits)), "multilabel"), "multilabel") > macro(
        labels, 1 / (1 + np.exp(-logits)), "multilabel"
    )


def test_an_adjustment_survives_plain_data():
    labels, said = classified(np.random.default_rng(0), [900, 60, 60])
    found, _ = fit_adjustment(labels, said, "multiclass")
    again = Adjustment.from_json(json.loads(json.dumps(found.to_json())))
    assert np.array_equal(again.apply(said, "multiclass"), found.apply(said, "multiclass"))
    assert found.apply(said, "multiclass").sum(1) == pytest.approx(np.ones(len(said)), abs=1e-6)


def test_log_losses_average_to_the_log_loss():
    rng = np.random.default_rng(0)
    for labels, said in (classified(rng, [20, 20]), multilabel(rng, 40, [0.3, 0.4])):
        assert log_losses(labels, said).mean() == pytest.approx(log_loss(labels, said))


def test_folds_hold_every_row_once_and_every_class_alike():
    labels = np.repeat([0, 1, 2], [50, 20, 5])
    folds = fold_rows(labels, 5, seed=0)
    assert np.array_equal(np.sort(np.concatenate(folds)), np.arange(75))
    assert all(np.bincount(labels[fold]).tolist() == [10, 4, 1] for fold in folds)
    assert len(fold_rows(labels[:3], 5, seed=0)) == 3
