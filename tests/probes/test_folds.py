from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl_tl.errors import DataError
from automl_tl.probes.folds import assign_folds


@settings(deadline=None, max_examples=40)
@given(n=st.integers(2, 80), n_classes=st.integers(1, 6), n_folds=st.integers(2, 5), seed=st.integers(0, 1000))
def test_folds_hold_a_class_evenly(n, n_classes, n_folds, seed):
    labels = np.random.default_rng(seed).integers(0, n_classes, n)
    folds = assign_folds(np.eye(n_classes)[labels], n_folds)
    sizes = np.bincount(folds, minlength=min(n, n_folds))
    assert len(sizes) == min(n, n_folds)
    assert np.ptp(sizes) <= 1
    for index in range(n_classes):
        assert np.ptp(np.bincount(folds[labels == index], minlength=n_folds)) <= 1


def test_a_label_is_held_evenly_where_a_sample_has_several():
    rng = np.random.default_rng(0)
    targets = (rng.random((300, 4)) < np.array([0.6, 0.3, 0.1, 0.03])).astype(float)
    folds = assign_folds(targets, 3)
    counts = np.stack([targets[folds == fold].sum(0) for fold in range(3)])
    assert (np.ptp(counts, axis=0)[2:] <= 1).all()
    assert (np.ptp(counts, axis=0) <= 0.15 * targets.sum(0) + 1).all()


@settings(deadline=None, max_examples=40)
@given(n=st.integers(4, 80), n_groups=st.integers(2, 20), n_folds=st.integers(2, 5), seed=st.integers(0, 1000))
def test_groups_are_kept_whole_and_no_fold_is_empty(n, n_groups, n_folds, seed):
    rng = np.random.default_rng(seed)
    groups = np.concatenate([[3, 5], rng.integers(0, n_groups, n - 2) * 2])
    folds = assign_folds(np.eye(3)[rng.integers(0, 3, n)], n_folds, groups=groups)
    assert set(folds) == set(range(min(n_folds, len(np.unique(groups)))))
    assert all(len(set(folds[groups == group])) == 1 for group in np.unique(groups))


def test_groups_are_dealt_by_class():
    groups = np.repeat(np.arange(30), 4)
    labels = np.repeat(np.arange(30) % 3, 4)
    folds = assign_folds(np.eye(3)[labels], 5, groups=groups)
    counts = np.stack([np.bincount(labels[folds == fold], minlength=3) for fold in range(5)])
    assert (counts == 8).all()


def test_one_group_cannot_be_parted():
    with pytest.raises(DataError, match="1 group"):
        assign_folds(np.eye(2)[[0, 1, 0]], 2, groups=np.zeros(3, np.int64))


def test_a_seed_repeats_folds():
    targets = np.eye(3)[np.arange(30) % 3]
    first, same, other = (assign_folds(targets, 3, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
