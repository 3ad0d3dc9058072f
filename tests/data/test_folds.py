from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl_tl.data.folds import fold_numbers, holdout

seeds = st.integers(0, 2**31)
fractions = st.floats(0.05, 0.6)
label_lists = st.lists(st.integers(0, 5), min_size=1, max_size=80)


@st.composite
def grouped(draw):
    """Labels and groups, each group of one class: as near-duplicates mostly are."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=2, max_size=25))
    classes = draw(st.lists(st.integers(0, 3), min_size=len(sizes), max_size=len(sizes)))
    order = np.random.default_rng(draw(seeds)).permutation(sum(sizes))
    return np.repeat(classes, sizes)[order], np.repeat(np.arange(len(sizes)) * 3, sizes)[order]


@st.composite
def any_task(draw):
    """Anything legal: few samples, one giant group, groups of several classes, several labels a sample or none."""
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(seeds))
    multilabel = draw(st.booleans())
    labels = rng.random((n, 4)) < [0.6, 0.2, 0.05, 0.0] if multilabel else rng.integers(0, draw(st.integers(1, 6)), n)
    groups = draw(
        st.sampled_from(
            [
                None,
                np.zeros(n, int),
                np.minimum(np.arange(n), 1),
                rng.integers(0, 4, n),
                rng.integers(0, n, n).astype(str),
            ]
        )
    )
    return labels, groups, multilabel


def units_of(labels, groups, label):
    return len(np.unique(groups[labels == label]))


@settings(deadline=None, max_examples=50)
@given(any_task(), st.integers(2, 6), seeds)
def test_folds_part_any_samples_and_none_is_empty(task, n_folds, seed):
    labels, groups, multilabel = task
    folds = fold_numbers(labels, n_folds, seed=seed, groups=groups, multilabel=multilabel)
    n_units = len(labels) if groups is None or len(np.unique(groups)) == 1 else len(np.unique(groups))
    assert folds.shape == (len(labels),)
    assert folds.dtype == np.int64
    assert set(folds) == set(range(min(n_folds, n_units)))
    if groups is not None and n_units == len(np.unique(groups)):
        assert all(len(set(folds[groups == group])) == 1 for group in np.unique(groups))
    np.testing.assert_array_equal(folds, fold_numbers(labels, n_folds, seed=seed, groups=groups, multilabel=multilabel))


@settings(deadline=None, max_examples=50)
@given(label_lists, st.integers(2, 6), seeds)
def test_folds_without_groups_differ_by_one_sample_of_a_class_and_one_in_all(labels, n_folds, seed):
    labels = np.array(labels)
    folds = fold_numbers(labels, n_folds, seed=seed)
    n_folds = min(n_folds, len(labels))
    assert np.ptp(np.bincount(folds, minlength=n_folds)) <= 1
    for label in np.unique(labels):
        assert np.ptp(np.bincount(folds[labels == label], minlength=n_folds)) <= 1


@settings(deadline=None, max_examples=50)
@given(grouped(), st.integers(2, 5), seeds)
def test_every_fold_has_every_class_of_enough_groups_and_every_training_part_one_of_two(task, n_folds, seed):
    labels, groups = task
    folds = fold_numbers(labels, n_folds, seed=seed, groups=groups)
    for label in np.unique(labels):
        n_units = units_of(labels, groups, label)
        assert len(set(folds[labels == label])) >= min(n_folds, n_units, folds.max() + 1)


@settings(deadline=None, max_examples=40)
@given(grouped(), st.integers(2, 5), seeds)
def test_folds_of_groups_are_as_even_as_their_largest_group_allows(task, n_folds, seed):
    labels, groups = task
    folds = fold_numbers(labels, n_folds, seed=seed, groups=groups)
    for label in np.unique(labels):
        largest = np.bincount(groups[labels == label]).max()
        assert np.ptp(np.bincount(folds[labels == label], minlength=folds.max() + 1)) <= largest


@settings(deadline=None, max_examples=25)
@given(seeds)
def test_folds_hold_every_label_evenly_where_samples_have_several(seed):
    labels = np.random.default_rng(seed).random((300, 4)) < [0.6, 0.3, 0.1, 0.03]
    folds = fold_numbers(labels, 3, seed=seed, multilabel=True)
    counts = np.stack([labels[folds == fold].sum(0) for fold in range(3)])
    assert (np.ptp(counts, axis=0) <= 0.15 * labels.sum(0) + 1).all()
    assert (counts[:, labels.sum(0) >= 3] > 0).all()
    assert np.ptp(np.bincount(folds)) <= 30


def test_groups_of_several_classes_are_spread_too():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    labels = rng.choice(3, size=200, p=[0.7, 0.25, 0.05])
    for seed in range(5):
        folds = fold_numbers(labels, 4, seed=seed, groups=groups)
        counts = np.stack([np.bincount(labels[folds == fold], minlength=3) for fold in range(4)])
        assert (counts > 0).all()
        assert (np.ptp(counts, axis=0) <= np.maximum(5, 0.15 * counts.sum(0))).all()


def test_a_single_sample_is_learnt_from():
    for labels, multilabel in ((np.array([0]), False), (np.array([[False, False]]), True)):
        train, held_out = holdout(labels, fraction=0.6, seed=0, multilabel=multilabel)
        assert (train.tolist(), held_out.tolist()) == ([0], [])


@settings(deadline=None, max_examples=50)
@given(any_task(), fractions, seeds)
def test_a_holdout_parts_any_samples_and_leaves_no_side_empty(task, fraction, seed):
    labels, groups, multilabel = task
    train, held_out = holdout(labels, fraction=fraction, seed=seed, groups=groups, multilabel=multilabel)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held_out])), np.arange(len(labels)))
    assert len(train)
    assert len(held_out) or len(labels) == 1
    if groups is not None and len(np.unique(groups)) > 1:
        assert not set(groups[train]) & set(groups[held_out])
    again = holdout(labels, fraction=fraction, seed=seed, groups=groups, multilabel=multilabel)
    np.testing.assert_array_equal(train, again[0])


@settings(deadline=None, max_examples=50)
@given(grouped(), fractions, seeds)
def test_a_holdout_has_every_class_of_two_groups_on_both_sides(task, fraction, seed):
    labels, groups = task
    train, held_out = holdout(labels, fraction=fraction, seed=seed, groups=groups)
    lonely = [units_of(labels, groups, label) < 2 for label in np.unique(labels)]
    for label, alone in zip(np.unique(labels), lonely, strict=True):
        assert alone or label in labels[held_out]
        assert all(lonely) or label in labels[train]


@settings(deadline=None, max_examples=50)
@given(grouped(), fractions, seeds)
def test_a_holdout_is_as_near_its_share_as_the_groups_of_a_class_allow(task, fraction, seed):
    labels, groups = task
    _, held_out = holdout(labels, fraction=fraction, seed=seed, groups=groups)
    for label in np.unique(labels):
        if units_of(labels, groups, label) > 1:
            held, count = int((labels[held_out] == label).sum()), int((labels == label).sum())
            assert abs(held - count * fraction) <= np.bincount(groups[labels == label]).max()


def test_every_seed_holds_out_others_and_every_group_in_its_turn():
    sizes = np.arange(1, 31) % 3 + 1
    groups = np.repeat(np.arange(30), sizes)
    labels = np.repeat(np.arange(30) % 2, sizes)
    drawn = np.zeros(30)
    for seed in range(200):
        _, held_out = holdout(labels, fraction=0.2, seed=seed, groups=groups)
        drawn[np.unique(groups[held_out])] += 1 / 200
    assert drawn.min() > 0.05
    assert drawn.max() < 0.45


def test_samples_of_many_groups_and_single_ones_are_held_out_alike():
    groups = np.concatenate([np.repeat(np.arange(50), 2), np.arange(50, 150)])
    labels = np.arange(200) // 2 % 2
    share = np.mean([(holdout(labels, fraction=0.2, seed=s, groups=groups)[1] < 100).mean() for s in range(50)])
    assert 0.4 < share < 0.6


@pytest.mark.parametrize("groups", [None, np.arange(3)])
def test_classes_of_one_sample_still_leave_something_to_score(groups):
    train, held_out = holdout(np.array(["a", "b", "c"]), fraction=0.2, seed=0, groups=groups)
    assert (len(train), len(held_out)) == (2, 1)


def test_a_class_within_one_group_is_trained_on():
    groups = np.array([0, 0, 0, 1, 2, 3, 4, 5])
    labels = np.array(["a", "a", "b", "b", "b", "b", "b", "b"])
    for seed in range(10):
        train, held_out = holdout(labels, fraction=0.3, seed=seed, groups=groups)
        assert set(labels[train]) == {"a", "b"}
        assert set(labels[held_out]) == {"b"}


def test_a_giant_group_is_trained_on():
    groups = np.concatenate([np.zeros(80, int), np.arange(1, 21)])
    labels = np.arange(100) % 2
    for seed in range(10):
        _, held_out = holdout(labels, fraction=0.2, seed=seed, groups=groups)
        assert 0 not in groups[held_out]
        assert 15 <= len(held_out) <= 20
