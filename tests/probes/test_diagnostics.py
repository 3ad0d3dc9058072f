from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from automl_tl.probes import centering
from automl_tl.probes.diagnostics import gbc, h_score, leep, logme, nleep


def classes(n, d, signal=1.0, seed=0, n_classes=3):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    means = rng.normal(size=(n_classes, d))
    return rng.normal(size=(n, d)) * rng.uniform(0.2, 2, d) + signal * means[labels] + 3, labels


def contrasts(n):
    """Orthonormal columns that span all that is orthogonal to a constant: (N, N - 1)."""
    return np.linalg.svd(np.eye(n) - 1 / n)[0][:, : n - 1]


def evidence(features, label, alpha, beta):
    """Log evidence of w ~ N(0, I / alpha), y ~ N(F w, I / beta) as in the paper, with all of the determinant."""
    n, d = features.shape
    system = alpha * np.eye(d) + beta * features.T @ features
    mean = beta * np.linalg.solve(system, features.T @ label)
    return (
        n / 2 * np.log(beta)
        + d / 2 * np.log(alpha)
        - n / 2 * np.log(2 * np.pi)
        - beta / 2 * np.square(features @ mean - label).sum()
        - alpha / 2 * mean @ mean
        - np.linalg.slogdet(system)[1] / 2
    )


@pytest.mark.parametrize(("n", "d"), [(20, 4), (9, 14), (12, 1)])
@pytest.mark.parametrize("signal", [0.0, 2.0])
def test_logme_is_the_largest_evidence(n, d, signal):
    features, labels = classes(n, d, signal)
    basis = contrasts(n)
    rows = basis.T @ features
    total = 0.0
    for index in range(3):
        label = basis.T @ (labels == index).astype(float)
        best = max(
            -minimize(
                lambda logs, label=label: -evidence(rows, label, *np.exp(logs)), start, bounds=[(-18, 18)] * 2
            ).fun
            for start in ((0.0, 3.0), (9.0, 2.0))
        )
        total += best
    assert logme(features, labels, 3) == pytest.approx(total / 3 / n, abs=2e-3)


def test_the_two_forms_of_the_evidence_agree():
    """The paper's, with a d x d determinant, and that of the labels as one Gaussian: also where d > N."""
    rng = np.random.default_rng(0)
    for n, d in ((8, 3), (5, 9)):
        features, label = rng.normal(size=(n, d)), rng.normal(size=n)
        direct = multivariate_normal(np.zeros(n), features @ features.T / 0.7 + np.eye(n) / 1.9).logpdf(label)
        assert evidence(features, label, 0.7, 1.9) == pytest.approx(direct)


@pytest.mark.parametrize("shape", [(40, 6), (20, 50)])
def test_logme_does_not_depend_on_scale_offset_or_rotation(shape):
    features, labels = classes(*shape)
    value = logme(features, labels, 3)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(shape[1], shape[1])))[0]
    assert logme(1000 * features, labels, 3) == pytest.approx(value, abs=1e-6)
    assert logme(features + 50, labels, 3) == pytest.approx(value, abs=1e-6)
    assert logme(features @ rotation, labels, 3) == pytest.approx(value, abs=1e-6)


def test_logme_of_noise_is_that_of_labels_alone_whatever_the_dimension():
    """Where the reference code gives 5.45 and more, and ten times the scale another value."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    alone = -(np.log(2 * np.pi * 0.25) + 1) / 2
    for d in (20, 512, 2048):
        assert logme(rng.normal(size=(200, d)), labels, 2) == pytest.approx(alone, abs=0.02)


def test_logme_rises_with_the_signal_and_takes_several_labels():
    values = [logme(*classes(40, 60, signal), 3) for signal in (0.0, 1.0, 3.0)]
    assert values == sorted(values)
    features, labels = classes(40, 6)
    assert logme(features, np.eye(3)[labels], 3) == logme(features, labels, 3)
    assert logme(features, labels, 5) == logme(features, labels, 3)
    assert logme(features, np.zeros(40, int), 1) == 0.0


@pytest.mark.parametrize(("n", "d"), [(60, 6), (20, 40), (12, 11)])
def test_h_score_is_that_of_dense_inverses(n, d):
    features, labels = classes(n, d)
    covariance, shrinkage = ledoit_wolf(features)
    means = np.stack([features[labels == index].mean(0) for index in range(3)])[labels]
    between = np.cov(means.T, bias=True).reshape(d, d)
    expected = (1 - shrinkage) * np.trace(np.linalg.solve(covariance, between))
    assert h_score(features, labels, 3) == pytest.approx(expected, rel=1e-6)
    assert h_score(30 * features + 7, labels, 3) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "d"), [(60, 6), (90, 80), (30, 100)])
def test_gbc_is_that_of_loops(n, d):
    features, labels = classes(n, d)
    points = PCA(min(64, d, n - 1), svd_solver="full").fit_transform(features)
    floor = 1e-3 * points.var(0).mean()
    expected = 0.0
    for one in range(3):
        for other in range(3):
            if one == other:
                continue
            first, second = points[labels == one], points[labels == other]
            variances = [rows.var(0) + floor for rows in (first, second)]
            middle = sum(variances) / 2
            distance = np.sum((first.mean(0) - second.mean(0)) ** 2 / middle) / 8
            distance += np.log(np.prod(middle / np.sqrt(variances[0] * variances[1]))) / 2
            expected -= np.exp(-distance)
    assert gbc(features, labels, 3) == pytest.approx(expected, rel=1e-5, abs=1e-12)
    assert gbc(20 * features - 4, labels, 3) == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_gbc_of_one_class_twice_is_full_overlap():
    features, _ = classes(30, 4)
    assert gbc(np.vstack([features, features]), np.arange(60) // 30, 2) == pytest.approx(-2)
    assert gbc(features, np.arange(30) // 29, 4) <= 0


def test_leep_is_that_of_loops():
    rng = np.random.default_rng(0)
    source, labels = rng.dirichlet(np.ones(5), 40), rng.integers(0, 3, 40)
    expected = 0.0
    for row in range(40):
        likely = 0.0
        for z in range(5):
            joint = sum(source[other, z] for other in range(40) if labels[other] == labels[row])
            likely += joint / sum(source[other, z] for other in range(40)) * source[row, z]
        expected += np.log(likely) / 40
    assert leep(source, labels) == pytest.approx(expected)


def test_leep_of_source_classes_that_are_the_target_classes_is_zero():
    labels = np.arange(30) % 3
    assert leep(np.eye(5)[labels], labels) == pytest.approx(0)
    assert leep(np.full((30, 5), 0.2), labels) == pytest.approx(np.log(1 / 3))


def test_nleep_is_the_leep_of_a_mixture(wine):
    features, labels = wine
    features = features / features.std(0)
    points = PCA(0.8, svd_solver="full").fit_transform(features)
    mixture = GaussianMixture(15, reg_covar=1e-3, random_state=0).fit(points / points.std())
    assert nleep(features, labels) == pytest.approx(leep(mixture.predict_proba(points / points.std()), labels), abs=0.1)
    assert nleep(features, labels) > nleep(np.random.default_rng(0).permutation(features), labels) + 0.3
    assert nleep(features, labels) == nleep(features, labels)


@pytest.mark.parametrize("score", [logme, h_score, gbc, lambda features, labels, _: nleep(features, labels)])
@pytest.mark.parametrize("shape", [(12, 3), (6, 30)])
def test_constant_features_and_rare_classes_have_finite_scores(score, shape):
    labels = np.arange(shape[0]) % 3
    labels[0] = 3
    assert np.isfinite(score(np.ones(shape), labels, 5))
    assert np.isfinite(score(classes(*shape)[0], labels, 5))


@pytest.mark.parametrize("score", [logme, h_score, gbc])
def test_chunks_and_single_precision_change_little(score, monkeypatch):
    features, labels = classes(80, 30)
    whole = score(features, labels, 3)
    monkeypatch.setattr(centering, "CHUNK", 100)
    assert score(features, labels, 3) == pytest.approx(whole, rel=1e-9)
    monkeypatch.setattr(centering, "EXACT_WORK", 0)
    assert score(features, labels, 3) == pytest.approx(whole, rel=1e-3)
