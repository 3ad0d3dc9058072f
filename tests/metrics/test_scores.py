from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from automl_tl.metrics.scores import (
    Counts,
    confusion_matrix,
    count,
    counts_of_confusion,
    decide,
    f1,
    f1_per_class,
    log_loss,
    report,
    validation_score,
)


@st.composite
def classified(draw):
    """Labels and predictions of few samples, so that classes are often absent from one, the other or both."""
    n_classes, n = draw(st.integers(2, 6)), draw(st.integers(1, 25))
    classes = st.lists(st.integers(0, n_classes - 1), min_size=n, max_size=n)
    return np.array(draw(classes)), np.array(draw(classes)), n_classes


@st.composite
def multi_hot(draw):
    n_classes, n = draw(st.integers(2, 5)), draw(st.integers(1, 12))
    cells = st.lists(st.booleans(), min_size=n * n_classes, max_size=n * n_classes)
    labels, said = (np.array(draw(cells)).reshape(n, n_classes) for _ in range(2))
    return labels.astype(np.float32), said.astype(np.int64), n_classes


def names(n_classes):
    return tuple(f"class {k}" for k in range(n_classes))


def check_against_sklearn(scores, labels, said, n_classes):
    options = {"labels": range(n_classes), "zero_division": 0}
    for average in ("macro", "micro", "weighted"):
        expected = metrics.f1_score(labels, said, average=average, **options)
        assert scores[f"f1_{average}"] == pytest.approx(expected)
    assert scores["precision_macro"] == pytest.approx(metrics.precision_score(labels, said, average="macro", **options))
    assert scores["recall_macro"] == pytest.approx(metrics.recall_score(labels, said, average="macro", **options))
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(labels, said))
    per_class = metrics.precision_recall_fscore_support(labels, said, average=None, **options)
    for key, expected in zip(("precision", "recall", "f1", "support"), per_class, strict=True):
        assert [entry[key] for entry in scores["per_class"]] == pytest.approx(expected.tolist())
    assert [entry["class"] for entry in scores["per_class"]] == list(names(n_classes))
    assert json.loads(json.dumps(scores)) == scores


@given(classified())
@settings(deadline=None, max_examples=50)
def test_scores_of_classes_equal_scikit_learns(case):
    labels, said, n_classes = case
    scores = report(labels, said, "multiclass", names(n_classes))
    check_against_sklearn(scores, labels, said, n_classes)
    expected = metrics.confusion_matrix(labels, said, labels=range(n_classes))
    assert scores["confusion"] == expected.tolist()
    assert np.array_equal(confusion_matrix(labels, said, n_classes), expected)


@given(multi_hot())
@settings(deadline=None, max_examples=50)
def test_scores_of_several_labels_equal_scikit_learns(case):
    labels, said, n_classes = case
    scores = report(labels, said, "multilabel", names(n_classes))
    check_against_sklearn(scores, labels.astype(int), said, n_classes)
    assert scores["confusion"] is None


@given(classified())
@settings(deadline=None, max_examples=25)
def test_binary_f1_is_that_of_the_second_class(case):
    labels, said = (values % 2 for values in case[:2])
    expected = metrics.f1_score(labels, said, pos_label=1, zero_division=0)
    assert f1(count(labels, said, "binary", 2), "f1_binary") == pytest.approx(expected)


@given(st.lists(classified(), min_size=1, max_size=4))
@settings(deadline=None, max_examples=25)
def test_many_confusions_are_scored_at_once(cases):
    each = [confusion_matrix(labels, said, 6) for labels, said, _ in cases]
    for metric in ("f1_macro", "f1_micro", "f1_weighted", "f1_binary"):
        together = f1(counts_of_confusion(np.stack(each)), metric)
        alone = [float(f1(counts_of_confusion(confusion), metric)) for confusion in each]
        assert together.tolist() == pytest.approx(alone)


def test_nothing_over_nothing_is_zero():
    nothing = np.zeros(3, dtype=int)
    assert f1_per_class(Counts(nothing, nothing, nothing)).tolist() == [0, 0, 0]
    assert f1(Counts(nothing, nothing, nothing), "f1_weighted") == 0


def test_a_decision_is_the_likeliest_class_or_every_likely_label():
    probabilities = np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.5]])
    assert decide(probabilities, "multiclass").tolist() == [1, 0]
    assert decide(probabilities, "multilabel").tolist() == [[0, 1, 0], [1, 0, 1]]


@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_the_validation_score_is_the_metric_of_the_decisions(data):
    labels, said, n_classes = data.draw(classified())
    probabilities = np.eye(n_classes)[said]
    metric = data.draw(st.sampled_from(("f1_macro", "f1_micro", "f1_weighted")))
    expected = f1(count(labels, said, "multiclass", n_classes), metric)
    assert validation_score(labels, probabilities, "multiclass", metric) == pytest.approx(float(expected))


@given(classified(), st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_log_loss_equals_scikit_learns(case, seed):
    labels, _, n_classes = case
    said = np.random.default_rng(seed).dirichlet(np.ones(n_classes), len(labels))
    expected = metrics.log_loss(labels, said, labels=range(n_classes))
    assert log_loss(labels, said) == pytest.approx(expected, rel=1e-5)
    indicators = np.eye(n_classes, dtype=np.float32)[labels]
    each = [metrics.log_loss(indicators[:, k], said[:, k], labels=[0, 1]) for k in range(n_classes)]
    assert log_loss(indicators, said) == pytest.approx(np.mean(each), rel=1e-5)


def test_log_loss_of_a_certain_mistake_is_finite():
    assert np.isfinite(log_loss(np.array([0]), np.array([[0.0, 1.0]], dtype=np.float32)))
    assert log_loss(np.array([1]), np.array([[0.0, 1.0]], dtype=np.float32)) == pytest.approx(0, abs=1e-6)
