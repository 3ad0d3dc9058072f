from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import f1_score
from sklearn.naive_bayes import GaussianNB

from automl_tl.metrics import intervals
from automl_tl.metrics.intervals import difference_interval, f1_interval
from automl_tl.metrics.scores import count, counts_of_indicators, f1

METRICS = ("f1_macro", "f1_micro", "f1_weighted")


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


def test_a_lower_level_gives_a_narrower_interval_of_the_same_draws(digits):
    labels, said, _ = digits
    draws = intervals._draws(labels, said[:, None], 10, "f1_macro", seed=0)[:, 0]
    narrow = f1_interval(labels, said, "multiclass", 10, level=0.9)
    assert narrow == pytest.approx(tuple(np.percentile(draws, [5, 95])))
    low, high = f1_interval(labels, said, "multiclass", 10)
    assert low < narrow[0] < narrow[1] < high


@pytest.mark.parametrize("metric", METRICS)
def test_the_interval_is_that_of_resampled_indices(digits, metric):
    labels, said, _ = digits
    draws = [score(labels[rows], said[rows], metric) for rows in resampled(labels)]
    low, high = np.percentile(draws, [2.5, 97.5])
    assert f1_interval(labels, said, "multiclass", 10, metric=metric) == pytest.approx((low, high), abs=0.012)


def test_all_draws_are_distributed_like_those_of_resampled_indices(digits):
    labels, said, other = digits
    ours = intervals._draws(labels, np.stack([said, other], 1), 10, "f1_macro", seed=0)
    assert ours.shape == (intervals.DRAWS, 2)
    theirs = np.array([[score(labels[rows], model[rows]) for model in (said, other)] for rows in resampled(labels)])
    assert ours.mean(0) == pytest.approx(theirs.mean(0), abs=0.005)
    assert ours.std(0) == pytest.approx(theirs.std(0), rel=0.12)
    assert np.corrcoef(ours.T)[0, 1] == pytest.approx(np.corrcoef(theirs.T)[0, 1], abs=0.12)  # paired


def test_the_difference_is_that_of_paired_draws(digits):
    labels, good, worse = digits
    draws = [score(labels[rows], good[rows]) - score(labels[rows], worse[rows]) for rows in resampled(labels)]
    low, high = np.percentile(draws, [2.5, 97.5])
    found = difference_interval(labels, good, worse, "multiclass", 10)
    assert found == pytest.approx((low, high), abs=0.02)
    assert found[0] > 0
    assert difference_interval(labels, worse, good, "multiclass", 10) == pytest.approx((-high, -low), abs=0.02)


def test_classes_keep_their_sizes(digits, monkeypatch):
    labels, said, _ = digits
    seen = []
    monkeypatch.setattr(intervals, "f1", lambda counts, metric: seen.append(counts) or f1(counts, metric))
    f1_interval(labels, said, "multiclass", 10)
    (counts,) = seen
    assert (counts.tp + counts.fn == np.bincount(labels, minlength=10)).all()
    assert (counts.tp.sum(-1) + counts.fp.sum(-1) == len(labels)).all()
    assert len(np.unique(counts.tp.sum(-1))) > 5


def test_the_interval_holds_the_score_and_halves_with_four_times_the_samples(digits):
    labels, said, _ = digits
    low, high = f1_interval(labels, said, "multiclass", 10)
    assert low < f1_score(labels, said, average="macro") < high
    narrow_low, narrow_high = f1_interval(np.tile(labels, 4), np.tile(said, 4), "multiclass", 10)
    assert narrow_high - narrow_low == pytest.approx((high - low) / 2, rel=0.15)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_a_model_does_not_differ_from_itself(digits, multilabel, kind):
    labels, said = (digits if kind == "multiclass" else multilabel)[:2]
    n_classes = 10 if kind == "multiclass" else 4
    assert difference_interval(labels, said, said.copy(), kind, n_classes) == (0.0, 0.0)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_a_perfect_model_has_no_doubt(digits, multilabel, kind):
    labels = (digits if kind == "multiclass" else multilabel)[0]
    n_classes = 10 if kind == "multiclass" else 4
    assert f1_interval(labels, labels.astype(np.int64), kind, n_classes) == (1.0, 1.0)


def test_several_labels_a_sample_are_resampled_by_sample(multilabel):
    labels, good, worse = multilabel
    rng = np.random.default_rng(5)
    draws = []
    for _ in range(600):
        rows = rng.integers(0, 120, 120)
        draws.append([f1(counts_of_indicators(labels[rows], said[rows]), "f1_macro") for said in (good, worse)])
    draws = np.array(draws)
    expected = np.percentile(draws[:, 0], [2.5, 97.5])
    assert f1_interval(labels, good, "multilabel", 4) == pytest.approx(tuple(expected), abs=0.012)
    expected = np.percentile(draws[:, 0] - draws[:, 1], [2.5, 97.5])
    assert difference_interval(labels, good, worse, "multilabel", 4) == pytest.approx(tuple(expected), abs=0.02)


def test_a_class_that_the_split_does_not_hold_counts_as_in_the_score(digits):
    labels, said, _ = digits
    few = labels < 5
    low, high = f1_interval(labels[few], said[few], "multiclass", 10)
    assert low <= score(labels[few], said[few]) <= high < 0.6


def test_a_seed_repeats_an_interval(digits):
    labels, said, _ = digits
    first, same, other = (f1_interval(labels, said, "multiclass", 10, seed=seed) for seed in (0, 0, 1))
    assert first == same != other


def test_about_95_of_100_intervals_hold_the_truth():
    """A model that is right in 80 of 100 cases, whatever the class, has a micro-F1 of 0.8."""
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(60):
        labels = np.arange(150) % 3
        said = np.where(rng.random(150) < 0.8, labels, (labels + 1) % 3)
        low, high = f1_interval(labels, said, "multiclass", 3, metric="f1_micro", seed=trial)
        held += low <= 0.8 <= high
    assert 52 <= held <= 60
