from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from automl_tl.metrics.scores import validation_score
from automl_tl.probes import centering, knn
from automl_tl.probes.knn import knn_loo


def brute_force(features, targets, k, groups):
    said = np.empty(targets.shape)
    similarity = cosine_similarity(features)
    for row in range(len(features)):
        others = [index for index in range(len(features)) if groups[index] != groups[row]]
        nearest = sorted(others, key=lambda index: (-similarity[row, index], index))[:k]
        votes = {index: 1 + similarity[row, index] / (4 * k) for index in nearest}
        total = sum(votes.values())
        said[row] = sum(vote * targets[index] for index, vote in votes.items()) / total if votes else targets.mean(0)
    return said


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(2, 40),
    d=st.integers(2, 8),
    k=st.integers(1, 6),
    seed=st.integers(0, 1000),
    grouped=st.booleans(),
    kind=st.sampled_from(["multiclass", "multilabel"]),
)
def test_votes_are_those_of_brute_force(n, d, k, seed, grouped, kind):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, d))
    labels = rng.integers(0, 3, n) if kind == "multiclass" else rng.integers(0, 2, (n, 3))
    targets = np.eye(3)[labels] if kind == "multiclass" else labels
    groups = rng.integers(0, 4, n) if grouped else None
    found = knn_loo(features, labels, kind, 3, k=k, groups=groups)
    expected = brute_force(features, targets, k, np.arange(n) if groups is None else groups)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_probabilities_sum_to_one_and_find_the_classes(wine):
    features, labels = wine
    said = knn_loo(features / features.std(0) - 5, labels, "multiclass", 3)
    np.testing.assert_allclose(said.sum(1), 1)
    assert validation_score(labels, said, "multiclass", "f1_macro") > 0.8


@pytest.mark.parametrize("grouped", [False, True])
def test_chunks_change_nothing(wine, monkeypatch, grouped):
    features, labels = wine
    groups = np.arange(len(labels)) % 40 if grouped else None
    whole = knn_loo(features, labels, "multiclass", 3, groups=groups)
    monkeypatch.setattr(centering, "CHUNK", 13 * 20)
    monkeypatch.setattr(knn, "COLUMNS", 16)
    np.testing.assert_allclose(knn_loo(features, labels, "multiclass", 3, groups=groups), whole, atol=1e-6)


def test_a_majority_is_never_turned_and_the_nearer_decide_a_draw():
    angles = np.array([0.0, 0.02, -0.03, 1.5, -1.5, 1.4])
    features = np.stack([np.cos(angles), np.sin(angles)], 1)
    labels = np.array([0, 1, 1, 0, 0, 0])
    assert knn_loo(features, labels, "binary", 2, k=5)[0].argmax() == 0
    assert knn_loo(features, labels, "binary", 2, k=4)[0].argmax() == 1


def test_of_equally_near_samples_the_first_count():
    features = np.tile([[1.0, 2.0]], (20, 1))
    labels = np.array([0] * 4 + [1] * 16)
    said = knn_loo(features, labels, "binary", 2, k=3)
    np.testing.assert_allclose(said[5:], np.tile([1.0, 0.0], (15, 1)))


def test_length_does_not_matter(wine):
    features, labels = wine
    stretched = features * np.random.default_rng(0).uniform(0.1, 10, (len(features), 1))
    np.testing.assert_allclose(
        knn_loo(stretched, labels, "multiclass", 3), knn_loo(features, labels, "multiclass", 3), atol=1e-5
    )


def test_without_neighbors_classes_are_as_likely_as_frequent():
    said = knn_loo(np.ones((4, 2)), np.array([0, 0, 0, 1]), "binary", 2, groups=np.zeros(4))
    np.testing.assert_allclose(said, [[0.75, 0.25]] * 4)
