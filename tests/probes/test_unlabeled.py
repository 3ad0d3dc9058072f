"""Heads that learn from unlabeled samples too: what they gain, and that nothing they are judged by teaches them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.metrics import f1_score

from automl_tl.errors import TrialError
from automl_tl.metrics.scores import validation_score
from automl_tl.probes import unlabeled as module
from automl_tl.probes.propagation import find_neighbors, solve, spread_labels
from automl_tl.probes.ridge import fit_ridge
from automl_tl.probes.unlabeled import fit_with_unlabeled, reached, surest

METHODS = ("pseudo_labels", "propagation")
EACH_METHOD = pytest.mark.parametrize("method", METHODS)


def drawn(seed):
    """Four labeled digits a class, 400 unlabeled ones, and 400 to score by."""
    features, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = np.concatenate([order[labels[order] == label][:4] for label in range(10)])
    rest = np.setdiff1d(order, chosen, assume_unique=True)
    return features[chosen], labels[chosen], features[rest[:400]], features[rest[400:800]], labels[rest[400:800]]


@pytest.fixture(scope="module")
def few():
    return drawn(0)


def f1(fit, features, labels):
    return f1_score(labels, (features @ fit.weight + fit.bias).argmax(1), average="macro")


@EACH_METHOD
@pytest.mark.parametrize("head", ["ridge", "logistic"])
def test_unlabeled_samples_help_where_labels_are_few(method, head):
    gains = []
    for seed in range(3):
        features, labels, unlabeled, new, answers = drawn(seed)
        plain = fit_ridge(features, labels, "multiclass", 10)
        taught = fit_with_unlabeled(features, labels, unlabeled, "multiclass", 10, method=method, head=head)
        gains.append(f1(taught.fit, new, answers) - f1(plain, new, answers))
        assert 0 < taught.learnt_from <= len(unlabeled)
    assert np.mean(gains) > 0.02, gains


@EACH_METHOD
def test_what_is_said_of_left_out_samples_is_what_the_score_is_of(few, method):
    features, labels, unlabeled, *_ = few
    fit = fit_with_unlabeled(features, labels, unlabeled, "multiclass", 10, method=method).fit
    assert fit.out_of_fold.shape == (40, 10)
    assert np.allclose(fit.out_of_fold.sum(1), 1)
    assert fit.score == validation_score(labels, fit.out_of_fold, "multiclass", "f1_macro")
    assert (fit.weight.dtype, fit.bias.dtype) == (np.float32, np.float32)


@EACH_METHOD
def test_labels_that_mean_nothing_are_not_learnt(few, method):
    features, labels, unlabeled, *_ = few
    labels = np.random.default_rng(1).permutation(labels)
    taught = fit_with_unlabeled(features, labels, unlabeled, "multiclass", 10, method=method)
    assert taught.fit.score < 0.35


@EACH_METHOD
def test_copies_of_a_judged_sample_do_not_teach(few, method):
    features, labels, unlabeled, *_ = few
    labels = np.random.default_rng(1).permutation(labels)
    twice, groups = np.concatenate([features, features]), np.tile(np.arange(len(labels)), 2)
    task = twice, np.tile(labels, 2), unlabeled, "multiclass", 10
    assert fit_with_unlabeled(*task, method=method).fit.score > 0.6  # each is known from its copy
    assert fit_with_unlabeled(*task, method=method, groups=groups).fit.score < 0.35


@EACH_METHOD
def test_a_lesson_does_not_hang_on_labels_that_are_left_out(few, method):
    features, labels, unlabeled, *_ = few
    learn = np.arange(8, 40)
    neighborhood = find_neighbors(features, unlabeled) if method == "propagation" else None

    def lesson(labels):
        known = module.Known(features, labels, np.ones(40), None, 10, "multiclass", "f1_macro", "none")
        return module._lesson(known, learn, unlabeled, neighborhood)

    others = labels.copy()
    others[:8] = (others[:8] + 1) % 10
    one, other = lesson(labels), lesson(others)
    assert np.array_equal(one.rows, other.rows)
    assert np.array_equal(one.classes, other.classes)


@EACH_METHOD
def test_the_same_twice_gives_the_same(few, method):
    features, labels, unlabeled, *_ = few
    one, two = (fit_with_unlabeled(features, labels, unlabeled, "multiclass", 10, method=method) for _ in range(2))
    assert np.array_equal(one.fit.weight, two.fit.weight)
    assert np.array_equal(one.fit.out_of_fold, two.fit.out_of_fold)


@EACH_METHOD
@pytest.mark.parametrize("n", [1, 3])
def test_a_handful_of_unlabeled_samples_is_enough_to_run(few, method, n):
    features, labels, unlabeled, *_ = few
    taught = fit_with_unlabeled(features, labels, unlabeled[:n], "multiclass", 10, method=method)
    assert np.isfinite(taught.fit.weight).all()
    assert taught.learnt_from <= n


@EACH_METHOD
def test_two_classes_with_class_weights(few, method):
    features, labels, unlabeled, new, answers = few
    taught = fit_with_unlabeled(
        features, (labels == 0).astype(int), unlabeled, "binary", 2, method=method, class_weight="balanced"
    )
    assert f1(taught.fit, new, (answers == 0).astype(int)) > 0.9


def test_several_labels_a_sample_are_refused(few):
    features, labels, unlabeled, *_ = few
    with pytest.raises(TrialError, match="classes of which a sample has one"):
        fit_with_unlabeled(features, np.eye(10)[labels], unlabeled, "multilabel", 10, method="propagation")


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**16), st.integers(1, 60), st.sampled_from([0.2, 0.5, 1.0]))
def test_pseudo_labels_are_agreed_on_capped_and_the_surest(seed, n, share):
    generator = np.random.default_rng(seed)
    said = generator.dirichlet(np.ones(4), size=(2, n))
    lesson = surest(list(said), share)
    mean = said.mean(0)
    named = mean.argmax(1)
    counts = np.bincount(named, minlength=4)
    most = np.ceil(module.MOST_OF_A_CLASS * n / np.count_nonzero(counts))
    assert np.array_equal(lesson.classes, named[lesson.rows])
    assert (said[:, lesson.rows].argmax(2) == named[lesson.rows]).all()
    for label in range(4):
        taken = lesson.rows[lesson.classes == label]
        assert len(taken) <= min(most, np.ceil(share * counts[label]))
        alike = np.flatnonzero((named == label) & (said.argmax(2) == label).all(0))
        left = np.setdiff1d(alike, taken)
        assert not len(left) or not len(taken) or mean[taken].max(1).min() >= mean[left].max(1).max()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**16), st.integers(2, 12), st.integers(1, 25))
def test_a_graph_of_some_is_the_graph_that_these_alone_would_have(seed, n, m):
    generator = np.random.default_rng(seed)
    features, unlabeled = generator.normal(size=(n, 5)), generator.normal(size=(m, 5))
    kept = np.sort(generator.choice(n, size=generator.integers(1, n + 1), replace=False))
    graph = find_neighbors(features, unlabeled).graph(kept).toarray()
    alone = find_neighbors(features[kept], unlabeled).graph(np.arange(len(kept))).toarray()
    assert np.allclose(graph, alone, atol=1e-6)
    assert np.allclose(graph, graph.T)
    assert np.abs(np.linalg.eigvalsh(graph)).max() <= 1 + 1e-6
    assert not graph.diagonal().any()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**16), st.sampled_from([0.5, 0.9, 0.99]))
def test_labels_spread_as_the_inverse_says(seed, alpha):
    generator = np.random.default_rng(seed)
    features, unlabeled = generator.normal(size=(6, 3)), generator.normal(size=(20, 3))
    graph = find_neighbors(features, unlabeled).graph(np.arange(6))
    wanted = np.zeros((26, 2))
    wanted[:6] = np.eye(2)[[0, 1, 0, 1, 0, 1]]
    exact = np.linalg.solve(np.eye(26) - alpha * graph.toarray(), wanted)
    assert np.allclose(solve(graph, alpha, wanted), exact, atol=1e-4)


def test_labels_spread_within_a_cluster():
    generator = np.random.default_rng(0)
    middle = np.array([[5.0, 0.0, 1.0], [0.0, 5.0, 1.0]])
    classes = np.repeat([0, 1], 30)
    samples = middle[classes] + generator.normal(scale=0.2, size=(60, 3))
    graph = find_neighbors(middle, samples).graph(np.arange(2))
    lesson = reached(spread_labels(graph, np.eye(2)))
    assert np.array_equal(lesson.classes, classes[lesson.rows])
    assert len(lesson.rows) == 60
    assert (lesson.weights <= module.WEIGHT).all()
