from __future__ import annotations

import numpy as np
import pytest

from automl_tl.metrics.optimism import optimism_of_scores, selection_optimism

N, TRIALS, CLASSES = 150, 15, 3


def trials(rng, skills, shared):
    """Labels and predictions of models that are right as often as their skill; they share difficult samples."""
    labels = np.arange(N) % CLASSES
    difficulty = np.sqrt(shared) * rng.normal(size=N) + np.sqrt(1 - shared) * rng.normal(size=(len(skills), N))
    limits = np.quantile(rng.normal(size=100_000), skills)
    return labels, np.where(difficulty < limits[:, None], labels, (labels + 1) % CLASSES)


@pytest.mark.parametrize(("spread", "shared"), [(0.0, 0.3), (0.0, 0.8), (0.05, 0.3)])
def test_the_optimism_is_what_the_best_of_many_trials_loses_on_new_samples(spread, shared):
    rng = np.random.default_rng(0)
    true, expected = [], []
    for _ in range(25):
        skills = np.clip(0.75 + rng.normal(scale=spread, size=TRIALS), 0.5, 0.95)
        labels, said = trials(rng, skills, shared)
        scores = (said == labels).mean(1)
        true.append((scores - skills)[scores.argmax()])
        expected.append(selection_optimism(labels, list(said), "multiclass", CLASSES, metric="f1_micro"))
    standard_error = np.std(true) / np.sqrt(len(true))
    assert np.mean(expected) == pytest.approx(np.mean(true), abs=3 * standard_error)


def test_trials_that_differ_by_far_more_than_noise_leave_little_to_be_picked():
    rng = np.random.default_rng(0)
    labels, alike = trials(rng, np.full(10, 0.7), 0.3)
    apart = trials(rng, np.linspace(0.3, 0.95, 10), 0.3)[1]
    of_alike, of_apart = (
        selection_optimism(labels, list(said), "multiclass", CLASSES, metric="f1_micro") for said in (alike, apart)
    )
    assert 0.02 < of_alike < 0.1
    assert of_apart < of_alike / 2


def test_one_trial_and_equal_trials_have_none():
    labels, said = trials(np.random.default_rng(0), np.full(2, 0.7), 0.3)
    assert selection_optimism(labels, [said[0]], "multiclass", CLASSES) == 0
    assert selection_optimism(labels, [said[0]] * 4, "multiclass", CLASSES) == 0
    assert optimism_of_scores([0.7], 0.05) == 0


def test_from_scores_alone_it_is_the_expected_maximum_of_the_noise():
    standard_normal_best_of_ten = 1.539
    assert optimism_of_scores([0.8] * 10, 0.02) == pytest.approx(0.02 * standard_normal_best_of_ten, rel=0.06)
    assert optimism_of_scores([0.8] * 10, 0.02, shared=0.75) == pytest.approx(
        0.01 * standard_normal_best_of_ten, rel=0.06
    )


def test_it_grows_with_the_number_of_trials_and_the_noise():
    few, many = (optimism_of_scores([0.8] * n, 0.02) for n in (3, 100))
    assert few < many < optimism_of_scores([0.8] * 100, 0.04)


def test_several_labels_a_sample():
    rng = np.random.default_rng(0)
    labels = (rng.random((100, 4)) < 0.4).astype(np.float32)
    said = [np.logical_xor(labels, rng.random(labels.shape) < 0.2).astype(np.int64) for _ in range(8)]
    assert 0.005 < selection_optimism(labels, said, "multilabel", 4) < 0.1
