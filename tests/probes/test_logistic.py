from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from automl_tl.data.folds import fold_numbers
from automl_tl.metrics.scores import log_loss, validation_score
from automl_tl.probes import centering, logistic
from automl_tl.probes.calibration import probabilities
from automl_tl.probes.decomposition import decompose
from automl_tl.probes.logistic import (
    STRENGTHS,
    fit_logistic,
    left_out_scores,
    loss_and_gradient,
    minimize_loss,
    pose,
)
from automl_tl.probes.ridge import fit_ridge
from automl_tl.probes.targets import indicators, loss_weights, sample_weights


def posed(features, labels, kind="multiclass", class_weight="none", n_folds=2):
    targets = indicators(labels, kind, 1 + labels.max())
    axes = decompose(features, sample_weights(targets, kind, class_weight))
    folds = fold_numbers(labels, n_folds, seed=0, multilabel=kind == "multilabel")
    return pose(axes, targets, loss_weights(targets, kind, class_weight), kind, folds), folds


def best(problem, strength):
    """Coefficients to many digits."""
    shape = (*problem.weights.shape[:1], len(problem.targets), 1 + len(problem.axes.values))
    coefficients = np.zeros(shape)
    for _ in range(20):
        coefficients, converged = minimize_loss(problem, strength, coefficients, gradient=1e-8)
        if converged:
            return coefficients
    raise AssertionError("not converged")


def raw(problem, coefficients):
    """Weight (d, K) and bias (K,) of one fit."""
    centered = problem.axes.centered
    weight = problem.axes.from_axes(coefficients[:, 1:].T) / centered.scale
    return weight, coefficients[:, 0] - centered.mean @ weight


@pytest.fixture
def streamed(monkeypatch):
    """Samples are read in several parts, and coordinates are not kept where there are more samples than columns."""
    monkeypatch.setattr(logistic, "CHUNK", 0)
    monkeypatch.setattr(centering, "CHUNK", 300)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
@pytest.mark.parametrize("class_weight", ["none", "balanced"])
@pytest.mark.parametrize("source", ["stored", "streamed"])
def test_the_gradient_is_that_of_the_loss(wine, multilabel, kind, class_weight, source, request):
    if source == "streamed":
        request.getfixturevalue("streamed")
    features, labels = wine if kind == "multiclass" else multilabel
    features, labels = features[::3, :5] / features[:, :5].std(0), labels[::3]
    if kind == "multilabel":
        labels = np.clip(labels, 0, 1)
        targets = labels.astype(float)
        problem = pose(
            decompose(features), targets, loss_weights(targets, kind, class_weight), kind, np.arange(len(labels)) % 2
        )
    else:
        problem, _ = posed(features, labels, kind, class_weight)
    assert (problem.stored is None) == (source == "streamed")
    rng = np.random.default_rng(0)
    point, direction = rng.normal(size=(2, 3, 3, 6))
    _, gradient = loss_and_gradient(problem, 0.1, point)
    step = 1e-5
    ahead, behind = (loss_and_gradient(problem, 0.1, point + sign * step * direction)[0] for sign in (1, -1))
    assert (ahead - behind) / (2 * step) == pytest.approx((gradient * direction).sum(), rel=1e-6)
    for index in ((0, 0, 0), (1, 2, 3), (2, 1, 5)):
        nudge = np.zeros_like(point)
        nudge[index] = step
        ahead, behind = (loss_and_gradient(problem, 0.1, point + sign * nudge)[0] for sign in (1, -1))
        assert (ahead - behind) / (2 * step) == pytest.approx(gradient[index], rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("data", ["wine", "digits"])
@pytest.mark.parametrize("class_weight", ["none", "balanced"])
@pytest.mark.parametrize("strength", [1e-2, 1e-3])
def test_the_solution_is_scikit_learns(data, class_weight, strength, request):
    features, labels = request.getfixturevalue(data)
    features = features / max(1, features.std(0).max())
    problem, folds = posed(features, labels, "multiclass", class_weight)
    found = best(problem, strength)
    weights = sample_weights(indicators(labels, "multiclass", 1 + labels.max()), "multiclass", class_weight)
    for fit, kept in ((0, folds != 0), (2, folds >= 0)):
        theirs = LogisticRegression(
            C=1 / (weights[kept].sum() * strength * problem.axes.centered.scale**2), tol=1e-9, max_iter=20_000
        ).fit(features[kept], labels[kept], sample_weight=weights[kept])
        weight, bias = raw(problem, found[fit])
        ours, expected = features @ weight + bias, features @ theirs.coef_.T + theirs.intercept_
        np.testing.assert_allclose(
            probabilities(ours, "multiclass"), probabilities(expected, "multiclass"), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_several_labels_are_as_many_problems(multilabel, class_weight):
    features, labels = multilabel
    targets = labels.astype(float)
    weights = loss_weights(targets, "multilabel", class_weight)
    problem = pose(decompose(features), targets, weights, "multilabel", np.arange(len(labels)) % 2)
    weight, bias = raw(problem, best(problem, 1e-3)[-1])
    for label in range(3):
        theirs = LogisticRegression(
            C=1 / (len(labels) * 1e-3 * problem.axes.centered.scale**2), tol=1e-9, max_iter=5000
        )
        theirs.fit(features, labels[:, label], sample_weight=weights[:, label])
        np.testing.assert_allclose(weight[:, label], theirs.coef_[0], atol=2e-4)
        np.testing.assert_allclose(bias[label], theirs.intercept_[0], atol=2e-3)


def test_left_out_scores_are_those_of_the_fit_without(wine):
    features, labels = wine
    problem, folds = posed(features / features.std(0), labels, n_folds=3)
    coefficients = np.random.default_rng(0).normal(size=(4, 3, 14))
    scores = left_out_scores(problem, coefficients, folds)
    for index in (0, 60, 177):
        weight, bias = raw(problem, coefficients[folds[index]])
        np.testing.assert_allclose(scores[index], (features / features.std(0))[index] @ weight + bias, rtol=1e-6)


def test_a_fold_is_not_seen_by_its_fit(wine):
    features, labels = wine
    problem, folds = posed(features / features.std(0), labels, n_folds=2)
    before = loss_and_gradient(problem, 0.01, np.ones((3, 3, 14)))[1]
    flipped = pose(
        problem.axes,
        np.where((folds == 0)[:, None], np.roll(problem.targets.T, 1, axis=1), problem.targets.T),
        np.ones((len(labels), 1)),
        "multiclass",
        folds,
    )
    after = loss_and_gradient(flipped, 0.01, np.ones((3, 3, 14)))[1]
    np.testing.assert_array_equal(after[0], before[0])
    assert not np.allclose(after[1], before[1])


@pytest.mark.parametrize("data", ["wine", "digits"])
def test_parts_change_nothing(data, request):
    features, labels = request.getfixturevalue(data)
    features = features / max(1, features.std(0).max())
    whole, folds = posed(features, labels)
    expected = left_out_scores(whole, best(whole, 1e-3), folds)
    request.getfixturevalue("streamed")
    parts, _ = posed(features, labels)
    assert (parts.stored is None) == (len(features) > features.shape[1])
    np.testing.assert_allclose(left_out_scores(parts, best(parts, 1e-3), folds), expected, atol=1e-4)


def test_single_precision_is_close(wine, monkeypatch):
    features, labels = wine
    features = features / features.std(0)
    exact = fit_logistic(features, labels, "multiclass", 3)
    monkeypatch.setattr(logistic, "EXACT_SIZE", 0)
    monkeypatch.setattr(centering, "EXACT_WORK", 0)
    short = fit_logistic(features.astype(np.float32), labels, "multiclass", 3)
    assert short.strength == exact.strength
    np.testing.assert_allclose(short.out_of_fold, exact.out_of_fold, atol=0.01)


def test_the_report_is_that_of_the_left_out_probabilities(wine):
    features, labels = wine
    features = (features / features.std(0)).astype(np.float32)
    fit = fit_logistic(features, labels, "multiclass", 3)
    assert fit.converged
    assert fit.score == validation_score(labels, fit.out_of_fold, "multiclass", "f1_macro") > 0.95
    assert fit.log_loss == pytest.approx(log_loss(labels, fit.out_of_fold))
    assert (fit.strength, fit.score, fit.log_loss) in fit.path
    assert [point.strength for point in fit.path] == list(STRENGTHS[: len(fit.path)])
    said = probabilities(features @ fit.weight + fit.bias, "multiclass")
    assert validation_score(labels, said, "multiclass", "f1_macro") >= fit.score
    assert fit.weight.dtype == fit.bias.dtype == np.float32


def test_the_path_ends_when_weaker_strengths_only_harm():
    rng = np.random.default_rng(0)
    labels = np.arange(100) % 2
    fit = fit_logistic(rng.normal(size=(100, 60)) + 0.15 * labels[:, None], labels, "binary", 2)
    assert len(fit.path) < len(STRENGTHS)


def test_a_ridge_fit_may_be_the_start(wine):
    features, labels = wine
    features = features / features.std(0)
    ridge = fit_ridge(features, labels, "multiclass", 3)
    problem, _ = posed(features, labels)
    started = logistic._start(problem, ridge)
    assert not started[:-1].any()
    weight, bias = raw(problem, started[-1])
    np.testing.assert_allclose(weight, ridge.weight, atol=1e-6)
    np.testing.assert_allclose(bias, ridge.bias, atol=1e-5)
    cold, warm = (fit_logistic(features, labels, "multiclass", 3, start=start) for start in (None, ridge))
    assert warm.strength == cold.strength
    np.testing.assert_allclose(warm.out_of_fold, cold.out_of_fold, atol=0.02)


def test_a_search_that_ends_early_says_so(wine, monkeypatch):
    monkeypatch.setattr(logistic, "STEPS", 1)
    features, labels = wine
    assert not fit_logistic(features, labels, "multiclass", 3).converged


def test_several_labels_a_sample(multilabel):
    features, labels = multilabel
    fit = fit_logistic(features, labels, "multilabel", 3)
    assert fit.score == validation_score(labels, fit.out_of_fold, "multilabel", "f1_macro") > 0.75


def test_groups_share_a_fold():
    rng = np.random.default_rng(0)
    features, labels = np.repeat(rng.normal(size=(40, 60)), 2, axis=0), np.repeat(np.arange(40) % 2, 2)
    assert fit_logistic(features, labels, "binary", 2).score > 0.85
    assert fit_logistic(features, labels, "binary", 2, groups=np.repeat(np.arange(40), 2)).score < 0.75
