from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from automl_tl.errors import DataError
from automl_tl.metrics.scores import log_loss, validation_score
from automl_tl.probes import centering, decomposition, ridge
from automl_tl.probes.calibration import probabilities
from automl_tl.probes.decomposition import decompose
from automl_tl.probes.logistic import fit_logistic
from automl_tl.probes.prototypes import fit_prototypes
from automl_tl.probes.ridge import LAMBDAS, fit_ridge, system

STRENGTHS = np.array([10.0, 0.3, 1e-2])


def refit(features, targets, weights, strength, scale):
    """Weight and bias of a weighted ridge, by the normal equations in raw columns."""
    mean = np.average(features, axis=0, weights=weights)
    center = np.average(targets, axis=0, weights=weights)
    rows = features - mean
    normal = (rows * weights[:, None]).T @ rows + strength * scale**2 * np.eye(features.shape[1])
    weight = np.linalg.solve(normal, (rows * weights[:, None]).T @ (targets - center))
    return weight, center - mean @ weight


def refitted_scores(features, targets, weights, strength, groups):
    """Scores of each group by a fit that has literally never seen it."""
    mean = np.average(features, axis=0, weights=weights)
    weights = weights / weights.mean()
    scale = np.sqrt(np.average(np.square(features - mean).sum(1), weights=weights))
    scores = np.empty_like(targets)
    for group in np.unique(groups):
        kept = groups != group
        weight, bias = refit(features[kept], targets[kept], weights[kept], strength, scale)
        scores[~kept] = features[~kept] @ weight + bias
    return scores


def problem(n, d, seed=0, n_classes=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    features = rng.normal(size=(n, d)) * rng.uniform(0.1, 3, d) + rng.normal(size=(n_classes, d))[labels] + 5
    return features, labels, np.eye(n_classes)[labels], rng.uniform(0.2, 3, n)


@pytest.mark.parametrize(("n", "d"), [(30, 7), (12, 25), (14, 13), (13, 13), (20, 1), (2, 3)])
@pytest.mark.parametrize("weighted", [False, True])
def test_left_out_scores_are_those_of_n_refits(n, d, weighted):
    features, _, targets, weights = problem(n, d)
    weights = weights if weighted else np.ones(n)
    found = system(decompose(features, weights), targets).left_out_scores(STRENGTHS)
    for strength, scores in zip(STRENGTHS, found, strict=True):
        expected = refitted_scores(features, targets, weights, strength, np.arange(n))
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("n", "d", "n_groups"), [(40, 6, 4), (40, 12, 9), (15, 30, 4), (30, 3, 12), (31, 30, 2)])
@pytest.mark.parametrize("weighted", [False, True])
def test_left_out_groups_are_those_of_refits(n, d, n_groups, weighted):
    features, _, targets, weights = problem(n, d)
    weights = weights if weighted else np.ones(n)
    groups = np.random.default_rng(1).permutation(np.arange(n) % n_groups) * 7
    found = system(decompose(features, weights), targets).left_out_scores(STRENGTHS, ridge.members(groups))
    for strength, scores in zip(STRENGTHS, found, strict=True):
        expected = refitted_scores(features, targets, weights, strength, groups)
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(3, 16),
    d=st.integers(1, 16),
    seed=st.integers(0, 10_000),
    weighted=st.booleans(),
    grouped=st.booleans(),
)
def test_leaving_out_is_refitting_for_any_shape(n, d, seed, weighted, grouped):
    features, _, targets, weights = problem(n, d, seed)
    weights = weights if weighted else np.ones(n)
    groups = np.arange(n) % 2 if grouped else np.arange(n)
    strengths = np.array([1.0, 0.05])
    found = system(decompose(features, weights), targets).left_out_scores(
        strengths, ridge.members(groups) if grouped else None
    )
    for strength, scores in zip(strengths, found, strict=True):
        expected = refitted_scores(features, targets, weights, strength, groups)
        np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-6)


def test_groups_of_one_are_samples(digits):
    features, labels = digits
    each = fit_ridge(features, labels, "multiclass", 10)
    grouped = fit_ridge(features, labels, "multiclass", 10, groups=np.arange(60)[::-1])
    np.testing.assert_allclose(grouped.out_of_fold, each.out_of_fold, atol=1e-8)
    assert grouped.strength == each.strength


@pytest.mark.parametrize("data", ["wine", "digits"])
def test_the_solution_is_scikit_learns(data, request):
    features, labels = request.getfixturevalue(data)
    targets = np.eye(labels.max() + 1)[labels]
    weights = np.random.default_rng(0).uniform(0.5, 2, len(labels))
    axes = decompose(features, weights)
    weight, bias = system(axes, targets).solution(0.1)
    theirs = Ridge(alpha=0.1 * axes.centered.scale**2, solver="svd").fit(
        features, targets, sample_weight=weights / weights.mean()
    )
    np.testing.assert_allclose(weight, theirs.coef_.T, atol=1e-8)
    np.testing.assert_allclose(bias, theirs.intercept_, atol=1e-6)


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_weight_and_bias_hold_centering_scale_and_temperature(wine, class_weight):
    features, labels = wine
    fit = fit_ridge(features, labels, "multiclass", 3, class_weight=class_weight)
    counts = np.bincount(labels)
    weights = (len(labels) / (3 * counts))[labels] if class_weight == "balanced" else np.ones(len(labels))
    mean = np.average(features, axis=0, weights=weights)
    scale = np.sqrt(np.average(np.square(features - mean).sum(1), weights=weights))
    targets = np.eye(3)[labels]
    rows, root = (features - mean) / scale, np.sqrt(weights / weights.mean())[:, None]
    center = np.average(targets, axis=0, weights=weights)
    coefficients = np.linalg.solve(
        (rows * root).T @ (rows * root) + fit.strength * np.eye(13), (rows * root).T @ ((targets - center) * root)
    )
    scores = rows @ coefficients + center
    logits = features @ fit.weight + fit.bias
    slope = np.ptp(logits) / np.ptp(scores)
    assert slope > 1
    np.testing.assert_allclose(logits, slope * scores, atol=2e-3 * slope)
    assert fit.weight.dtype == fit.bias.dtype == np.float32


def test_the_report_is_that_of_the_left_out_probabilities(wine):
    features, labels = wine
    fit = fit_ridge(features, labels, "multiclass", 3, metric="f1_micro")
    assert fit.score == validation_score(labels, fit.out_of_fold, "multiclass", "f1_micro")
    assert fit.log_loss == pytest.approx(log_loss(labels, fit.out_of_fold))
    assert [point.strength for point in fit.path] == list(LAMBDAS)
    assert (fit.strength, fit.score, fit.log_loss) in fit.path
    assert fit.score == max(point.score for point in fit.path)
    np.testing.assert_allclose(fit.out_of_fold.sum(1), 1)


def test_left_out_probabilities_are_calibrated(digits):
    features, labels = digits
    fit = fit_ridge(features, labels, "multiclass", 10)
    logits = np.log(fit.out_of_fold)
    for factor in (0.5, 2):
        assert log_loss(labels, probabilities(factor * logits, "multiclass")) > fit.log_loss


def test_noise_is_no_better_than_chance():
    rng = np.random.default_rng(0)
    fit = fit_ridge(rng.normal(size=(200, 40)), np.arange(200) % 4, "multiclass", 4)
    assert fit.score < 0.4
    assert fit.log_loss == pytest.approx(np.log(4), rel=0.1)


def test_balance_finds_more_of_a_rare_class():
    rng = np.random.default_rng(0)
    labels = (np.arange(300) < 30).astype(np.int64)
    features = rng.normal(size=(300, 5)) + 1.2 * labels[:, None] * np.array([1, 1, 0, 0, 0])
    plain, balanced = (
        fit_ridge(features, labels, "binary", 2, class_weight=weight).out_of_fold.argmax(1)
        for weight in ("none", "balanced")
    )
    assert (balanced == 1).sum() > 2 * (plain == 1).sum()
    several = labels[:, None] == np.array([1, 0])
    plain, balanced = (
        fit_ridge(features, several.astype(np.int64), "multilabel", 2, class_weight=weight).out_of_fold[:, 0]
        for weight in ("none", "balanced")
    )
    assert (balanced >= 0.5).sum() > 2 * (plain >= 0.5).sum()


def test_several_labels_a_sample(multilabel):
    features, labels = multilabel
    fit = fit_ridge(features, labels, "multilabel", 3)
    assert fit.score == validation_score(labels, fit.out_of_fold, "multilabel", "f1_macro") > 0.8
    said = probabilities(features @ fit.weight + fit.bias, "multilabel")
    assert validation_score(labels, said, "multilabel", "f1_macro") >= fit.score - 0.02
    assert np.abs(said - fit.out_of_fold).mean() < 0.05


def test_groups_are_left_out_together():
    """Twins that give each other away: leaving one out is no test, leaving both out is."""
    rng = np.random.default_rng(0)
    features, labels = np.repeat(rng.normal(size=(40, 60)), 2, axis=0), np.repeat(np.arange(40) % 2, 2)
    assert fit_ridge(features, labels, "binary", 2).score > 0.95
    assert fit_ridge(features, labels, "binary", 2, groups=np.repeat(np.arange(40), 2)).score < 0.75


@pytest.mark.parametrize("shape", [(60, 20), (20, 60)])
@pytest.mark.parametrize("grouped", [False, True])
def test_chunks_change_nothing(monkeypatch, shape, grouped):
    features, labels, _, _ = problem(*shape)
    groups = np.arange(len(labels)) % 2 if grouped else None
    whole = fit_ridge(features, labels, "multiclass", 3, groups=groups)
    monkeypatch.setattr(centering, "CHUNK", 7 * shape[1])
    monkeypatch.setattr(ridge, "BLOCK", 4 * len(labels) * 3)
    parts = fit_ridge(features, labels, "multiclass", 3, groups=groups)
    assert [point.strength for point in parts.path] == list(LAMBDAS)
    np.testing.assert_allclose(parts.out_of_fold, whole.out_of_fold, atol=1e-9)
    np.testing.assert_allclose(parts.weight, whole.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(60, 20), (20, 60)])
@pytest.mark.parametrize("n_groups", [None, 2, 12])
def test_single_precision_is_close(monkeypatch, shape, n_groups):
    features, labels, targets, _ = problem(*shape)
    groups = None if n_groups is None else ridge.members(np.arange(len(labels)) % n_groups)
    strengths = np.array(LAMBDAS)
    exact = system(decompose(features), targets).left_out_scores(strengths, groups)
    monkeypatch.setattr(centering, "EXACT_WORK", 0)
    axes = decompose(features)
    assert axes.values.dtype == np.float64
    np.testing.assert_allclose(system(axes, targets).left_out_scores(strengths, groups), exact, atol=2e-3)


def test_many_samples_are_decomposed_in_double_precision(monkeypatch):
    monkeypatch.setattr(centering, "EXACT_WORK", 0)
    monkeypatch.setattr(decomposition, "FEW_SAMPLES", 10)
    features, _, _, _ = problem(30, 4)
    assert decompose(features).directions.dtype == np.float64


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_features_may_lie_on_disk_in_few_bits(tmp_path, dtype, wine):
    features, labels = wine
    stored = (features / features.std(0)).astype(dtype)
    np.save(tmp_path / "features.npy", stored)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    expected = fit_ridge(stored.astype(np.float64), labels, "multiclass", 3)
    np.testing.assert_allclose(fit_ridge(mapped, labels, "multiclass", 3).out_of_fold, expected.out_of_fold, atol=1e-9)


def test_a_mean_far_from_zero_does_no_harm(wine):
    features, labels = wine
    features = (features / features.std(0)).astype(np.float64)
    near, far = (fit_ridge(features + offset, labels, "multiclass", 3) for offset in (0, 1e5))
    np.testing.assert_allclose(far.out_of_fold, near.out_of_fold, atol=1e-6)


@pytest.mark.parametrize("fit", [fit_ridge, fit_logistic, fit_prototypes])
def test_a_single_group_of_all_keeps_nothing_apart(wine, fit):
    features, labels = wine
    alone = fit(features, labels, "multiclass", 3, groups=np.full(len(labels), 7))
    np.testing.assert_array_equal(alone.out_of_fold, fit(features, labels, "multiclass", 3).out_of_fold)


def test_what_cannot_be_judged_is_named():
    with pytest.raises(DataError, match="1 sample"):
        fit_ridge(np.ones((1, 3)), np.zeros(1, np.int64), "multiclass", 2)
    features = np.ones((4, 3), np.float16)
    features[2, 1] = np.inf
    with pytest.raises(DataError, match="column 1 of 3"):
        fit_ridge(features, np.arange(4) % 2, "binary", 2)
