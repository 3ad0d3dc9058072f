from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap
from sklearn.datasets import load_digits
from sklearn.metrics import f1_score
from sklearn.naive_bayes import GaussianNB

from automl_tl.metrics import intervals
from automl_tl.metrics.intervals import (
    class_difference_intervals,
    difference_interval,
    f1_interval,
    metric_draws,
)
from automl_tl.metrics.scores import count, counts_of_indicators, f1, f1_per_class

METRICS = ("f1_macro", "f1_micro", "f1_weighted")
METHODS = ("eased", "percentile", "bca")


@pytest.fixture(scope="module")
def digits():
    """Return test labels, a good model's predictions and a worse one's."""
    images, labels = load_digits(return_X_y=True)
    said = []
    for columns in (slice(20, 44), slice(28, 36)):
        model = GaussianNB(var_smoothing=0.01).fit(images[:300, columns], labels[:300])
        said.append(model.predict(images[300:500, columns]))
    return labels[300:500], *said


@pytest.fixture(scope="module")
def multilabel():
    rng = np.random.default_rng(0)
    labels = (rng.random((120, 4)) < 0.4).astype(np.float32)
    flipped = rng.random((2, 120, 4)) < np.array([0.1, 0.25])[:, None, None]
    good, worse = np.logical_xor(labels, flipped).astype(np.int64)
    return labels, good, worse


def score(labels, said, metric="f1_macro"):
    return float(f1(count(labels, said, "multiclass", 10), metric))


def resampled(labels, draws=1000):
    """Indices of bootstrap samples in which every class keeps its size."""
    rng = np.random.default_rng(1)
    members = [np.flatnonzero(labels == k) for k in np.unique(labels)]
    return [np.concatenate([rng.choice(of_class, len(of_class)) for of_class in members]) for _ in range(draws)]


@st.composite
def classified(draw):
    n_classes, n = draw(st.integers(2, 5)), draw(st.integers(2, 30))
    classes = st.lists(st.integers(0, n_classes - 1), min_size=n, max_size=n)
    return np.array(draw(classes)), np.array(draw(classes)), n_classes


def drawn_samples(labels, said, kind, n_classes, monkeypatch):
    """How often each different sample comes up in each draw, and those samples."""
    seen, samples = [], intervals._samples(labels, [said], kind, n_classes)
    original = intervals._Samples.counts
    monkeypatch.setattr(intervals._Samples, "counts", lambda self, times: seen.append(times) or original(self, times))
    return samples, seen


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("few", [False, True])
def test_every_draw_is_scored_as_scikit_learn_scores_its_rows(digits, monkeypatch, metric, few):
    labels, said, _ = digits
    labels, said = (values[labels < 5] if few else values for values in (labels, said))
    samples, seen = drawn_samples(labels, said, "multiclass", 10, monkeypatch)
    ours = metric_draws(labels, [said], "multiclass", 10, metric=metric, draws=20)[:, 0]
    pairs = np.unique(np.stack([labels, said], 1), axis=0)
    assert len(pairs) == len(samples.sizes)
    for found, times in zip(ours, seen[0].astype(int), strict=True):
        true, predicted = np.repeat(pairs, times, axis=0).T
        assert np.array_equal(np.bincount(true, minlength=10), np.bincount(labels, minlength=10))
        options = {"average": metric.removeprefix("f1_"), "labels": range(10), "zero_division": 0}
        assert found == pytest.approx(f1_score(true, predicted, **options))


def test_every_draw_of_several_labels_is_scored_as_scikit_learn_scores_its_rows(multilabel, monkeypatch):
    labels, good, _ = multilabel
    _, seen = drawn_samples(labels, good, "multilabel", 4, monkeypatch)
    ours = metric_draws(labels, [good], "multilabel", 4, draws=20)[:, 0]
    rows = np.unique(np.concatenate([labels, good], 1), axis=0).astype(int)
    for found, times in zip(ours, seen[0].astype(int), strict=True):
        chosen = np.repeat(rows, times, axis=0)
        assert len(chosen) == len(labels)
        assert found == pytest.approx(f1_score(chosen[:, :4], chosen[:, 4:], average="macro", zero_division=0))


def test_draws_are_distributed_like_those_of_resampled_indices(digits):
    labels, said, other = digits
    ours = metric_draws(labels, [said, other], "multiclass", 10)
    assert ours.shape == (intervals.DRAWS, 2)
    theirs = np.array([[score(labels[rows], model[rows]) for model in (said, other)] for rows in resampled(labels)])
    assert ours.mean(0) == pytest.approx(theirs.mean(0), abs=0.005)
    assert ours.std(0) == pytest.approx(theirs.std(0), rel=0.12)
    assert np.corrcoef(ours.T)[0, 1] == pytest.approx(np.corrcoef(theirs.T)[0, 1], abs=0.12)  # paired


@pytest.mark.parametrize("metric", METRICS)
def test_percentiles_are_those_of_resampled_indices(digits, metric):
    labels, said, _ = digits
    draws = [score(labels[rows], said[rows], metric) for rows in resampled(labels)]
    found = f1_interval(labels, said, "multiclass", 10, metric=metric, method="percentile")
    assert found == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])), abs=0.012)


def test_bca_is_that_of_scipy(digits):
    """Micro-F1 is the share of right answers, here of three classes that are drawn from apart."""
    labels, said, _ = digits
    of_classes = [np.flatnonzero(labels == k)[: 8 + 4 * k] for k in range(3)]
    rows = np.concatenate(of_classes)
    parts = tuple((said[members] == labels[members]).astype(float) for members in of_classes)

    def share(*drawn, axis=-1):
        return sum(part.sum(axis) for part in drawn) / len(rows)

    theirs = bootstrap(parts, share, method="BCa", n_resamples=20_000, vectorized=True, rng=0).confidence_interval
    found = f1_interval(labels[rows], said[rows], "multiclass", 10, metric="f1_micro", method="bca")
    assert found == pytest.approx(tuple(theirs), abs=0.03)  # steps of 1/36
    assert found != f1_interval(labels[rows], said[rows], "multiclass", 10, metric="f1_micro", method="percentile")


def test_bca_of_samples_that_are_drawn_together_is_that_of_scipy(multilabel):
    labels, good, _ = (values[:60] for values in multilabel)

    def macro(rows):
        return float(f1(counts_of_indicators(labels[rows], good[rows]), "f1_macro"))

    theirs = bootstrap((np.arange(60),), macro, method="BCa", n_resamples=2000, vectorized=False, rng=0)
    found = f1_interval(labels, good, "multilabel", 4, method="bca")
    assert found == pytest.approx(tuple(theirs.confidence_interval), abs=0.012)


@given(classified(), st.sampled_from(METHODS))
@settings(deadline=None, max_examples=25)
def test_an_interval_holds_its_score_and_lies_within_0_and_1(case, method):
    labels, said, n_classes = case
    low, high = f1_interval(labels, said, "multiclass", n_classes, method=method)
    found = float(f1(count(labels, said, "multiclass", n_classes), "f1_macro"))
    assert 0 <= low <= found <= high <= 1
    other = np.roll(said, 1)
    low, high = difference_interval(labels, said, other, "multiclass", n_classes, method=method)
    found -= float(f1(count(labels, other, "multiclass", n_classes), "f1_macro"))
    assert -1 <= low <= found + 1e-12
    assert found - 1e-12 <= high <= 1


def test_a_lower_level_gives_a_narrower_interval(digits):
    labels, said, _ = digits
    for method in METHODS:
        low, high = f1_interval(labels, said, "multiclass", 10, method=method)
        narrow = f1_interval(labels, said, "multiclass", 10, level=0.8, method=method)
        assert low < narrow[0] < narrow[1] < high


@pytest.mark.parametrize("method", METHODS)
def test_intervals_agree_and_halve_with_four_times_the_samples(digits, method):
    labels, said, _ = digits
    low, high = f1_interval(np.tile(labels, 4), np.tile(said, 4), "multiclass", 10, method=method)
    plain = f1_interval(np.tile(labels, 4), np.tile(said, 4), "multiclass", 10, method="percentile")
    assert (low, high) == pytest.approx(plain, abs=0.01)
    wide_low, wide_high = f1_interval(labels, said, "multiclass", 10, method=method)
    assert high - low == pytest.approx((wide_high - wide_low) / 2, rel=0.15)


def test_a_perfect_score_of_few_samples_leaves_doubt(digits, multilabel):
    for labels, kind, n_classes in ((digits[0], "multiclass", 10), (multilabel[0], "multilabel", 4)):
        said = labels.astype(np.int64)
        assert f1_interval(labels, said, kind, n_classes, method="percentile") == (1, 1)
        few, many = (f1_interval(labels[:n], said[:n], kind, n_classes) for n in (50, 120))
        assert few[1] == many[1] == 1
        assert 0.85 < few[0] < many[0] < 0.995


def test_the_difference_is_that_of_paired_draws(digits):
    labels, good, worse = digits
    draws = [score(labels[rows], good[rows]) - score(labels[rows], worse[rows]) for rows in resampled(labels)]
    low, high = np.percentile(draws, [2.5, 97.5])
    for method in METHODS:
        found = difference_interval(labels, good, worse, "multiclass", 10, method=method)
        assert found == pytest.approx((low, high), abs=0.025)
        assert found[0] > 0
        turned = difference_interval(labels, worse, good, "multiclass", 10, method=method)
        assert turned == pytest.approx((-found[1], -found[0]), abs=0.01)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_two_models_that_agree_may_differ_by_little_either_way(digits, multilabel, kind):
    labels, said = (digits if kind == "multiclass" else multilabel)[:2]
    n_classes = 10 if kind == "multiclass" else 4
    low, high = difference_interval(labels, said, said.copy(), kind, n_classes)
    assert -0.03 < low < 0 < high < 0.03
    assert difference_interval(labels, said, said.copy(), kind, n_classes, method="percentile") == (0, 0)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_each_class_has_its_own_difference(digits, multilabel, kind):
    labels, good, worse = digits if kind == "multiclass" else multilabel
    n_classes = 10 if kind == "multiclass" else 4
    found = class_difference_intervals(labels, good, worse, kind, n_classes)
    each = [f1_per_class(count(labels, said, kind, n_classes)) for said in (good, worse)]
    assert found.shape == (n_classes, 2)
    assert (found[:, 0] <= each[0] - each[1]).all()
    assert (each[0] - each[1] <= found[:, 1]).all()
    overall = difference_interval(labels, good, worse, kind, n_classes)
    assert np.median(found[:, 1] - found[:, 0]) > overall[1] - overall[0]
    wider = class_difference_intervals(labels, good, worse, kind, n_classes, level=0.995)
    assert (wider[:, 0] <= found[:, 0]).all()


def test_of_a_class_that_the_split_does_not_hold_nothing_is_said(digits):
    labels, good, worse = (values[digits[0] < 5] for values in digits)
    found = class_difference_intervals(labels, good, worse, "multiclass", 10)
    assert (found[5:] == [-1, 1]).all()
    assert (np.abs(found[:5]) < 1).all()
    low, high = f1_interval(labels, good, "multiclass", 10)
    assert low <= score(labels, good) <= high < 0.6


def test_the_doubt_of_refits_widens(digits):
    labels, good, worse = digits
    low, high = f1_interval(labels, good, "multiclass", 10)
    wide_low, wide_high = f1_interval(labels, good, "multiclass", 10, seed_sd=0.05)
    assert wide_low < low < high < wide_high
    one = np.diff(difference_interval(labels, good, worse, "multiclass", 10))[0]
    two = np.diff(difference_interval(labels, good, worse, "multiclass", 10, seed_sd=0.05))[0]
    assert two == pytest.approx(np.hypot(one, 2 * 1.96 * 0.05), rel=1e-3)


def test_a_seed_repeats_an_interval(digits):
    labels, said, _ = digits
    first, same, other = (f1_interval(labels, said, "multiclass", 10, seed=seed) for seed in (0, 0, 1))
    assert first == same != other


def test_draws_in_chunks_are_as_many(digits, monkeypatch):
    labels, said, _ = digits
    whole = metric_draws(labels, [said], "multiclass", 10)
    monkeypatch.setattr(intervals, "PER_CHUNK", 3000)
    chunked = metric_draws(labels, [said], "multiclass", 10)
    assert chunked.shape == whole.shape
    assert chunked.mean() == pytest.approx(whole.mean(), abs=0.005)


def test_about_95_of_100_intervals_hold_the_truth():
    """A model that is right in 95 of 100 cases, of few samples and rare classes."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), [20, 10, 5, 3, 1, 1])
    held = dict.fromkeys(METHODS, 0)
    for trial in range(100):
        said = np.where(rng.random(40) < 0.95, labels, (labels + 1) % 6)
        for method in METHODS:
            low, high = f1_interval(labels, said, "multiclass", 6, metric="f1_micro", seed=trial, method=method)
            held[method] += low <= 0.95 <= high
    assert 92 <= held["eased"] <= 100
    assert held["percentile"] < 92
