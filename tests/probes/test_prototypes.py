from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl_tl.metrics.scores import log_loss, validation_score
from automl_tl.probes import centering
from automl_tl.probes.calibration import probabilities
from automl_tl.probes.prototypes import fit_prototypes


def distances(features, means):
    return np.square(features[:, None, :] - means[None, :, :]).sum(2)


def nearest_without(features, labels, n_classes, groups):
    """Squared distances to class means from which each group is literally left out."""
    found = np.full((len(labels), n_classes), np.inf)
    for group in np.unique(groups):
        kept = groups != group
        for label in np.unique(labels[kept]):
            mean = features[kept & (labels == label)].mean(0)
            found[~kept, label] = np.square(features[~kept] - mean).sum(1)
    return found


@settings(deadline=None, max_examples=40)
@given(n=st.integers(6, 40), d=st.integers(1, 8), seed=st.integers(0, 1000), n_groups=st.sampled_from([None, 2, 5]))
def test_left_out_distances_are_those_of_means_without(n, d, seed, n_groups):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    features = rng.normal(size=(n, d)) + labels[:, None] + 10
    groups = None if n_groups is None else np.arange(n) % n_groups
    fit = fit_prototypes(features, labels, "multiclass", 3, class_weight="balanced", groups=groups)
    expected = -nearest_without(features, labels, 3, np.arange(n) if groups is None else groups)
    logits = np.log(fit.out_of_fold.clip(min=1e-300))
    assert fit.out_of_fold[np.isinf(expected)].max(initial=0) <= 0.5
    known = np.isfinite(expected) & (fit.out_of_fold > 1e-250)
    both = known[:, :, None] & known[:, None, :]
    expected = np.where(known, expected, 0)
    apart = (expected[:, :, None] - expected[:, None, :])[both]
    ours = (logits[:, :, None] - logits[:, None, :])[both]
    slope = (apart @ ours) / max(apart @ apart, 1e-12)
    assert slope > 0 or not apart.any()
    np.testing.assert_allclose(ours, slope * apart, atol=1e-6 * max(1, np.abs(ours).max()))


def test_the_linear_map_is_the_nearest_mean(wine):
    features, labels = wine
    fit = fit_prototypes(features, labels, "multiclass", 3, class_weight="balanced")
    means = np.stack([features[labels == label].mean(0) for label in range(3)])
    logits, nearness = features @ fit.weight + fit.bias, -distances(features, means)
    difference, expected = logits - logits[:, :1], nearness - nearness[:, :1]
    slope = (difference * expected).sum() / np.square(expected).sum()
    np.testing.assert_allclose(difference, slope * expected, atol=1e-3 * np.abs(difference).max())
    assert (logits.argmax(1) == nearness.argmax(1)).mean() > 0.98


def test_plain_weights_know_how_frequent_classes_are():
    rng = np.random.default_rng(0)
    labels = (np.arange(400) < 40).astype(np.int64)
    features = rng.normal(size=(400, 3)) + labels[:, None]
    plain, balanced = (
        fit_prototypes(features, labels, "binary", 2, class_weight=weight) for weight in ("none", "balanced")
    )
    assert (plain.out_of_fold.argmax(1) == 1).sum() < 40 < (balanced.out_of_fold.argmax(1) == 1).sum()
    assert plain.log_loss < balanced.log_loss


@pytest.mark.parametrize("n_groups", [None, 7])
def test_several_labels_compare_positives_with_negatives(multilabel, n_groups):
    features, labels = multilabel
    groups = None if n_groups is None else np.arange(len(labels)) % n_groups
    fit = fit_prototypes(features, labels, "multilabel", 3, groups=groups)
    logits = np.log(fit.out_of_fold) - np.log1p(-fit.out_of_fold)
    slopes = []
    for label in range(3):
        expected = -nearest_without(features, labels[:, label], 2, np.arange(len(labels)) if groups is None else groups)
        margin = expected[:, 1] - expected[:, 0]
        slope, _ = np.polyfit(margin, logits[:, label], 1)
        np.testing.assert_allclose(np.corrcoef(margin, logits[:, label])[0, 1], 1, atol=1e-9)
        slopes.append(slope)
    np.testing.assert_allclose(slopes, slopes[0], rtol=1e-6)
    said = probabilities(features @ fit.weight + fit.bias, "multilabel")
    assert np.abs(said - fit.out_of_fold).mean() < 0.05


def test_the_report_is_that_of_the_left_out_probabilities(digits):
    features, labels = digits
    fit = fit_prototypes(features, labels, "multiclass", 10)
    assert fit.score == validation_score(labels, fit.out_of_fold, "multiclass", "f1_macro") > 0.7
    assert fit.log_loss == pytest.approx(log_loss(labels, fit.out_of_fold))
    assert fit.path == ((0.0, fit.score, fit.log_loss),)
    assert fit.strength == 0


@pytest.mark.parametrize("n_groups", [None, 3])
def test_chunks_change_nothing(wine, monkeypatch, n_groups):
    features, labels = wine
    groups = None if n_groups is None else np.arange(len(labels)) % n_groups
    whole = fit_prototypes(features, labels, "multiclass", 3, groups=groups)
    monkeypatch.setattr(centering, "CHUNK", 13 * 9)
    parts = fit_prototypes(features, labels, "multiclass", 3, groups=groups)
    np.testing.assert_allclose(parts.out_of_fold, whole.out_of_fold, atol=1e-9)
    np.testing.assert_allclose(parts.weight, whole.weight, rtol=1e-5, atol=1e-6)
