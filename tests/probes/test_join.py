from __future__ import annotations

import numpy as np
import pytest

from automl_tl.metrics.scores import validation_score
from automl_tl.probes import centering
from automl_tl.probes.join import Joined, fit_joined, join_taps
from automl_tl.probes.logistic import fit_logistic
from automl_tl.probes.ridge import fit_ridge


@pytest.fixture
def blocks(wine):
    features, _ = wine
    return [features[:, :4], 1e3 * features[:, 4:6], features[:, 6:].astype(np.float32)]


def test_every_tap_weighs_the_same(blocks):
    factors = join_taps(blocks)
    assert factors.shape == (13,)
    scaled = np.hstack(blocks) * factors
    for part in np.split(scaled, [4, 6], axis=1):
        assert part.var(0).sum() == pytest.approx(1, rel=1e-5)


def test_a_constant_tap_is_kept_as_it_is(blocks):
    factors = join_taps([blocks[0], np.full((178, 2), 7.0)])
    np.testing.assert_array_equal(factors[4:], 1)


def test_rows_are_put_together_when_they_are_read(blocks):
    joined = Joined(blocks, np.arange(13.0))
    assert joined.shape == (178, 13)
    for rows in (slice(3, 9), np.array([5, 1, 1])):
        np.testing.assert_allclose(joined[rows], np.hstack(blocks)[rows] * np.arange(13.0))


@pytest.mark.parametrize("method", ["ridge", "logistic"])
def test_the_fit_is_that_of_scaled_columns_for_raw_ones(wine, blocks, method):
    _, labels = wine
    factors = join_taps(blocks)
    raw = np.hstack(blocks)
    fit = fit_joined(blocks, labels, "multiclass", 3, method=method)
    ridge = fit_ridge(raw * factors, labels, "multiclass", 3)
    direct = ridge if method == "ridge" else fit_logistic(raw * factors, labels, "multiclass", 3, start=ridge)
    np.testing.assert_allclose(fit.out_of_fold, direct.out_of_fold, atol=1e-6)
    expected = (raw * factors) @ direct.weight + direct.bias
    np.testing.assert_allclose(raw @ fit.weight + fit.bias, expected, atol=1e-2)
    assert fit.weight.dtype == np.float32
    assert validation_score(labels, raw @ fit.weight + fit.bias, "multiclass", "f1_macro") > 0.9


def test_the_unit_of_a_tap_does_not_matter(wine, blocks):
    _, labels = wine
    one = fit_joined(blocks, labels, "multiclass", 3)
    other = fit_joined([blocks[0] * 1e-3, blocks[1], blocks[2] * 50], labels, "multiclass", 3)
    np.testing.assert_allclose(other.out_of_fold, one.out_of_fold, atol=1e-5)


def test_a_quiet_tap_is_heard_beside_a_loud_one():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    loud, quiet = rng.normal(size=(60, 50)) * 1e4, 1e-3 * (rng.normal(size=(60, 2)) + 4 * labels[:, None])
    assert fit_joined([loud, quiet], labels, "binary", 2).score > 0.95
    assert fit_ridge(np.hstack([loud, quiet]), labels, "binary", 2).score < 0.8


def test_options_reach_the_fit(wine, blocks, monkeypatch):
    _, labels = wine
    groups = np.arange(178) // 2
    fit = fit_joined(blocks, labels, "multiclass", 3, metric="f1_micro", class_weight="balanced", groups=groups)
    factors = join_taps(blocks)
    direct = fit_ridge(
        np.hstack(blocks) * factors,
        labels,
        "multiclass",
        3,
        metric="f1_micro",
        class_weight="balanced",
        groups=groups,
    )
    np.testing.assert_allclose(fit.path, direct.path, rtol=1e-6)
    monkeypatch.setattr(centering, "CHUNK", 100)
    parts = fit_joined(blocks, labels, "multiclass", 3, metric="f1_micro", class_weight="balanced", groups=groups)
    np.testing.assert_allclose(parts.out_of_fold, fit.out_of_fold, atol=1e-8)
