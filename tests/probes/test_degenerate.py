"""What every probe survives: classes of one sample, hardly any samples, columns that say nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl_tl.probes.knn import knn_loo
from automl_tl.probes.logistic import fit_logistic
from automl_tl.probes.prototypes import fit_prototypes
from automl_tl.probes.ridge import fit_ridge

FITS = (fit_ridge, fit_logistic, fit_prototypes)


def check(fit, features, labels, kind, n_outputs, **options):
    found = fit(features, labels, kind, n_outputs, **options)
    assert found.weight.shape == (features.shape[1], n_outputs)
    assert found.bias.shape == (n_outputs,)
    assert found.out_of_fold.shape == (len(labels), n_outputs)
    for values in (found.weight, found.bias, found.out_of_fold, found.score, found.log_loss):
        assert np.isfinite(values).all()
    assert (found.out_of_fold >= 0).all()
    assert (found.out_of_fold <= 1).all()
    if kind != "multilabel":
        np.testing.assert_allclose(found.out_of_fold.sum(1), 1, atol=1e-6)
    return found


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_a_class_of_one_sample_and_one_of_none(fit, class_weight):
    rng = np.random.default_rng(0)
    labels = np.array([0] * 10 + [1] * 10 + [2])
    found = check(fit, rng.normal(size=(21, 4)) + labels[:, None], labels, "multiclass", 4, class_weight=class_weight)
    assert (found.out_of_fold.argmax(1) != 3).all()
    assert found.out_of_fold[20].argmax() != 2


@pytest.mark.parametrize("fit", FITS)
def test_fewer_samples_than_classes(fit):
    features = np.random.default_rng(0).normal(size=(4, 6))
    check(fit, features, np.array([0, 3, 3, 7]), "multiclass", 8)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("labels", [[0, 1], [1, 1]])
def test_two_samples(fit, labels):
    check(fit, np.array([[0.0, 1.0], [1.0, 0.0]]), np.array(labels), "binary", 2)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
@pytest.mark.parametrize("shape", [(12, 3), (6, 20)])
def test_constant_features(fit, value, shape):
    labels = np.arange(shape[0]) % 3
    labels[-1] = 0
    found = check(fit, np.full(shape, value, np.float32), labels, "multiclass", 3)
    assert np.abs(found.weight).max() < 1e-3


@pytest.mark.parametrize("fit", FITS)
def test_duplicated_and_constant_columns(fit):
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    column = rng.normal(size=(40, 2)) + 3 * labels[:, None]
    features = np.hstack([column, column, np.ones((40, 2)), column[:, :1]])
    assert check(fit, features, labels, "binary", 2).score > 0.9


@pytest.mark.parametrize("fit", FITS)
def test_one_column(fit):
    labels = np.arange(30) % 2
    features = np.random.default_rng(0).normal(size=(30, 1)) + 4 * labels[:, None]
    assert check(fit, features, labels, "binary", 2).score > 0.9


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_labels_that_all_or_none_carry(fit, class_weight):
    rng = np.random.default_rng(0)
    first = np.arange(20) % 2
    labels = np.stack([first, np.ones(20, int), np.zeros(20, int), np.eye(20, dtype=int)[0]], 1)
    features = rng.normal(size=(20, 3)) + 3 * first[:, None]
    found = check(fit, features, labels, "multilabel", 4, class_weight=class_weight)
    assert (found.out_of_fold[:, 1] > 0.5).all()
    assert (found.out_of_fold[:, 2] < 0.5).all()


@pytest.mark.parametrize("fit", FITS)
def test_a_class_that_lies_in_one_group(fit):
    labels = np.repeat(np.arange(3), 6)
    features = np.random.default_rng(0).normal(size=(18, 4)) + labels[:, None]
    groups = np.where(labels == 2, 9, np.arange(18) % 4)
    found = check(fit, features, labels, "multiclass", 3, groups=groups)
    assert (found.out_of_fold[labels == 2].argmax(1) != 2).all()


@settings(deadline=None, max_examples=25)
@given(
    fit=st.sampled_from(FITS),
    n=st.integers(2, 15),
    d=st.integers(1, 12),
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(["binary", "multiclass", "multilabel"]),
    class_weight=st.sampled_from(["none", "balanced"]),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    grouped=st.booleans(),
)
def test_any_small_data(fit, n, d, seed, kind, class_weight, scale, grouped):
    rng = np.random.default_rng(seed)
    n_outputs = 2 if kind == "binary" else 4
    labels = rng.integers(0, 2, (n, 4)) if kind == "multilabel" else rng.integers(0, n_outputs, n)
    features = scale * rng.integers(-2, 3, (n, d)).astype(np.float32)
    groups = np.arange(n) % 2 if grouped else None
    check(fit, features, labels, kind, n_outputs, class_weight=class_weight, groups=groups)
    said = knn_loo(features, labels, kind, n_outputs, groups=groups)
    assert said.shape == (n, n_outputs)
    assert np.isfinite(said).all()
