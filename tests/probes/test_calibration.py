from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax

from automl_tl.metrics.scores import log_loss
from automl_tl.probes.calibration import SLOPES, calibrate, probabilities


def softmax_loss(scores, targets, slope, shift):
    doubt = 1 / (len(scores) + 1)
    soft = (1 - doubt) * targets + doubt * targets.mean(0)
    return -(soft * log_softmax(slope * scores + shift, axis=1)).sum()


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(2, 60),
    n_classes=st.integers(2, 6),
    signal=st.floats(0, 20),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 1000),
    shifted=st.booleans(),
)
def test_the_slope_is_that_of_least_loss(n, n_classes, signal, scale, seed, shifted):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    targets = np.eye(n_classes)[labels]
    scores = scale * (rng.normal(size=(n, n_classes)) + signal * targets)
    shift = rng.normal(size=n_classes) if shifted else None
    found = calibrate(scores, targets, "multiclass", shift=shift)
    shift = np.zeros(n_classes) if shift is None else shift
    np.testing.assert_array_equal(found.shift, shift)
    spread = np.sqrt(np.mean((scores - scores.mean(1, keepdims=True)) ** 2))
    best = minimize_scalar(
        lambda log_slope: softmax_loss(scores, targets, np.exp(log_slope) / spread, shift),
        bounds=tuple(np.log(SLOPES)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert softmax_loss(scores, targets, found.slope, shift) <= best.fun * (1 + 1e-5) + 1e-6
    assert 0 < found.slope < np.inf


def test_scores_without_an_error_get_a_finite_slope():
    targets = np.eye(3)[np.arange(90) % 3]
    said = probabilities(calibrate(targets, targets, "multiclass").logits(targets), "multiclass")
    assert 0.98 < said.max() < 1 - 1e-4


def test_scores_worse_than_chance_keep_their_order():
    targets = np.eye(3)[np.arange(90) % 3]
    found = calibrate(-targets, targets, "multiclass")
    assert found.slope > 0
    np.testing.assert_allclose(probabilities(found.logits(-targets), "multiclass"), 1 / 3, atol=0.01)


def test_scores_that_are_all_the_same_are_no_news():
    targets = np.eye(2)[[0, 0, 0, 1]]
    said = probabilities(calibrate(np.ones((4, 2)), targets, "binary").logits(np.ones((4, 2))), "binary")
    np.testing.assert_allclose(said, 0.5)


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
@pytest.mark.parametrize("signal", [0.0, 0.3, 3.0, 100.0])
def test_thresholds_are_those_of_least_loss(class_weight, signal):
    rng = np.random.default_rng(0)
    targets = (rng.random((120, 3)) < np.array([0.5, 0.2, 0.03])).astype(float)
    scores = 5 + 0.01 * (rng.normal(size=(120, 3)) + signal * targets)
    weights = np.ones((120, 3))
    if class_weight == "balanced":
        weights = np.where(targets > 0, ((1 - targets).sum(0) / targets.sum(0)), 1)
    soft = targets * 120 / 121 + ((targets.sum(0) + 0.5) / 121) / 121

    def loss(parameters):
        logits = parameters[0] * (scores - 5) * 100 + parameters[1:]
        return (weights * (np.logaddexp(0, logits) - soft * logits)).sum()

    found = calibrate(scores, targets, "multilabel", class_weight=class_weight)
    ours = loss(np.concatenate([[found.slope / 100], found.shift + 5 * found.slope]))
    best = minimize(loss, np.zeros(4), bounds=[(1e-3, None), *[(None, None)] * 3], options={"maxiter": 500})
    assert ours <= best.fun * (1 + 1e-4)


def test_labels_that_all_or_none_carry_get_finite_thresholds():
    targets = np.stack([np.ones(20), np.zeros(20), np.arange(20) % 2], 1)
    scores = np.random.default_rng(0).normal(size=(20, 3)) * 0.1
    for class_weight in ("none", "balanced"):
        found = calibrate(scores, targets, "multilabel", class_weight=class_weight)
        said = expit(found.logits(scores))
        assert np.isfinite(found.shift).all()
        assert (said[:, 0] > 0.9).all()
        assert (said[:, 1] < 0.1).all()


def test_balance_moves_the_threshold_of_a_rare_label():
    rng = np.random.default_rng(0)
    targets = (rng.random((500, 1)) < 0.05).astype(float)
    scores = targets + rng.normal(size=(500, 1))
    plain, balanced = (
        expit(calibrate(scores, targets, "multilabel", class_weight=weight).logits(scores))
        for weight in ("none", "balanced")
    )
    assert (plain >= 0.5).mean() < 0.05
    assert 0.15 < (balanced >= 0.5).mean() < 0.6
    assert plain.mean() == pytest.approx(targets.mean(), abs=0.01)
    assert log_loss(targets, plain) < log_loss(targets, balanced)
