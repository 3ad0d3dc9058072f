from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_predict
from sklearn.naive_bayes import GaussianNB

from automl_tl.finish.ensemble import Gain, choosing_gain, ensemble_gain, mixture_gain, select_ensemble
from automl_tl.metrics.scores import log_loss, validation_score

N_TRAIN = 300


@pytest.fixture(scope="module")
def digits():
    """Return labels and left-out probabilities (M, N, K) of models of few pixels each, and those of test samples."""
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    left_out, unseen = [], []
    for _ in range(8):
        pixels = rng.choice(64, 16, replace=False)
        model, train = GaussianNB(var_smoothing=0.01), images[:N_TRAIN, pixels]
        left_out.append(cross_val_predict(model, train, labels[:N_TRAIN], cv=5, method="predict_proba"))
        unseen.append(model.fit(train, labels[:N_TRAIN]).predict_proba(images[N_TRAIN:, pixels]))
    return labels[:N_TRAIN], np.stack(left_out), labels[N_TRAIN:], np.stack(unseen)


def macro(labels, probabilities, kind="multiclass"):
    return validation_score(labels, probabilities, kind, "f1_macro")


def mixed(weights, probabilities):
    return np.tensordot(weights, probabilities, axes=1)


@pytest.mark.parametrize(
    ("metric", "log_loss", "pays"),
    [
        (0.01, 0.02, True),
        (-0.005, 0.02, True),
        (0.01, -0.005, True),
        (-0.02, 0.05, False),
        (0.05, -0.02, False),
        (-0.001, -0.001, False),
        (0.0, 0.0, False),
    ],
)
def test_an_ensemble_pays_by_one_measure_if_the_other_has_nothing_against_it(metric, log_loss, pays):
    gain = Gain(gain=metric, standard_error=0.01, log_loss_gain=log_loss, log_loss_standard_error=0.01)
    assert gain.pays is pays


def test_models_that_see_different_things_are_better_together_also_on_new_samples(digits):
    labels, left_out, test_labels, unseen = digits
    weights = select_ensemble(labels, left_out, "multiclass")
    assert weights.sum() == pytest.approx(1)
    assert np.count_nonzero(weights) > 1
    best = max(range(8), key=lambda model: macro(labels, left_out[model]))
    assert macro(test_labels, mixed(weights, unseen)) > macro(test_labels, unseen[best]) + 0.05


def test_the_gain_is_what_new_samples_show(digits):
    labels, left_out, test_labels, unseen = digits
    found = ensemble_gain(labels, left_out, "multiclass")
    weights = select_ensemble(labels, left_out, "multiclass")
    best = max(range(8), key=lambda model: macro(labels, left_out[model]))
    true = macro(test_labels, mixed(weights, unseen)) - macro(test_labels, unseen[best])
    assert found.gain == pytest.approx(true, abs=3 * found.standard_error)
    assert found.gain > 2 * found.standard_error
    assert found.log_loss_gain > 0


def test_what_one_choice_gains_over_another_is_told_by_samples_that_chose_neither(digits):
    labels, left_out, *_ = digits

    def of(models):
        def choose(some):
            weights = np.zeros(len(models))
            few = np.flatnonzero(models)
            weights[few] = select_ensemble(labels[some], left_out[few][:, some], "multiclass")
            return weights

        return choose

    few, every = np.arange(8) < 3, np.ones(8, dtype=bool)
    gained = choosing_gain(labels, left_out, of(every), of(few), "multiclass")
    assert gained.gain > 2 * gained.standard_error
    assert gained.above(1.0)
    assert choosing_gain(labels, left_out, of(few), of(every), "multiclass").below(1.0)
    assert choosing_gain(labels, left_out, of(few), of(few), "multiclass").gain == 0


def test_log_loss_is_compared_at_each_ones_own_best_temperature(digits):
    """What says less than it knows, as label smoothing teaches, is no worse for it."""
    labels, left_out, *_ = digits
    sure = left_out.mean(0)
    vague = sure**0.3 / (sure**0.3).sum(1, keepdims=True)
    assert log_loss(labels, vague) > log_loss(labels, sure) + 0.2
    found = mixture_gain(labels, vague, sure, "multiclass")
    assert found.gain == 0
    assert found.log_loss_gain == pytest.approx(0, abs=1e-3)


def test_noise_promises_an_ensemble_no_gain():
    """One model that knows and many that guess: noise gains nothing on samples that did not tune it."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 120)
    guesses = rng.dirichlet(np.ones(3), size=(9, 120))
    knows = 0.4 * np.eye(3)[np.where(rng.random(120) < 0.8, labels, (labels + 1) % 3)] + 0.2
    found = ensemble_gain(labels, np.concatenate([knows[None], guesses]), "multiclass", bags=4, rounds=20)
    assert found.gain < 2 * found.standard_error


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 4), st.sampled_from(["multiclass", "multilabel"]))
@settings(deadline=None, max_examples=30)
def test_weights_are_shares_and_repeat(seed, n_models, n_classes, kind):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, 40)
    probabilities = rng.dirichlet(np.ones(n_classes), size=(n_models, 40))
    if kind == "multilabel":
        labels = (rng.random((40, n_classes)) < 0.4).astype(np.int64)
        probabilities = rng.random((n_models, 40, n_classes))
    first, second = (select_ensemble(labels, probabilities, kind, seed=seed, rounds=10, bags=3) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.sum() == pytest.approx(1)
    assert (first >= 0).all()


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_with_all_models_in_every_bag_it_is_never_below_the_best_single(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 60)
    probabilities = rng.dirichlet(np.ones(3), size=(4, 60))
    weights = select_ensemble(labels, probabilities, "multiclass", share=1.0)
    assert macro(labels, mixed(weights, probabilities)) >= max(macro(labels, each) for each in probabilities) - 1e-9


def test_a_model_that_is_always_right_stays_alone():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    sure = 0.97 * np.eye(3)[labels] + 0.01
    probabilities = np.stack([rng.dirichlet(np.ones(3), 90), sure, rng.dirichlet(np.ones(3), 90)])
    assert select_ensemble(labels, probabilities, "multiclass", share=1.0).tolist() == [0, 1, 0]


def test_of_equal_f1_the_lower_log_loss_is_taken():
    labels = np.arange(60) % 3
    vague, sure = 0.4 * np.eye(3)[labels] + 0.2, 0.97 * np.eye(3)[labels] + 0.01
    weights = select_ensemble(labels, np.stack([vague, sure]), "multiclass")
    assert log_loss(labels, mixed(weights, np.stack([vague, sure]))) == pytest.approx(log_loss(labels, sure))


@pytest.mark.parametrize("most", [1, 2, 3])
def test_members_can_be_limited(digits, most):
    labels, left_out = digits[:2]
    weights = select_ensemble(labels, left_out, "multiclass", most=most)
    assert 1 <= np.count_nonzero(weights) <= most
    assert weights.sum() == pytest.approx(1)


def test_copies_of_one_model_are_not_all_kept(digits):
    labels, left_out = digits[:2]
    weights = select_ensemble(labels, np.repeat(left_out[:1], 6, axis=0), "multiclass")
    assert np.count_nonzero(weights) == 1


def test_several_labels_a_sample_are_better_together():
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 4)) < 0.4).astype(np.float32)
    logits = (2 * labels - 1) + rng.normal(scale=1.5, size=(5, 200, 4))
    probabilities = 1 / (1 + np.exp(-2 * logits))
    weights = select_ensemble(labels, probabilities, "multilabel")
    together = macro(labels, mixed(weights, probabilities), "multilabel")
    assert together > max(macro(labels, each, "multilabel") for each in probabilities) + 0.03
    assert ensemble_gain(labels, probabilities, "multilabel", bags=3).gain > 0.03
