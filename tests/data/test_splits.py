from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl_tl.data.splits import split_indices
from automl_tl.errors import DataError

fractions = st.floats(0.05, 0.95)
seeds = st.integers(0, 2**31)


def partitions(kept, held_out, count):
    return np.array_equal(np.sort(np.concatenate([kept, held_out])), np.arange(count))


@given(st.lists(st.integers(0, 5), min_size=2, max_size=80), fractions, seeds)
@settings(deadline=None, max_examples=50)
def test_a_stratified_split_holds_out_each_class_within_one_sample_of_its_share(labels, fraction, seed):
    labels = np.array(labels)
    kept, held_out = split_indices(labels, fraction=fraction, seed=seed)
    assert partitions(kept, held_out, len(labels))
    for label in np.unique(labels):
        count = int((labels == label).sum())
        held = int((labels[held_out] == label).sum())
        assert abs(held - count * fraction) <= 1 + 1e-9
        if count >= 2:
            assert 0 < held < count
        else:
            assert held == 0


@given(st.lists(st.integers(0, 2), min_size=30, max_size=90), fractions, seeds)
@settings(deadline=None, max_examples=25)
def test_the_held_out_total_is_the_fraction_when_every_class_is_large_enough(labels, fraction, seed):
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    held_out = split_indices(np.array(labels), fraction=fraction, seed=seed)[1]
    if (counts * fraction >= 1).all() and (counts * (1 - fraction) >= 1).all():
        assert abs(len(held_out) - len(labels) * fraction) <= 0.5 + 1e-9


@given(st.integers(4, 60), st.integers(2, 5), fractions, seeds)
@settings(deadline=None, max_examples=50)
def test_a_multilabel_split_partitions_the_samples(count, n_labels, fraction, seed):
    labels = np.random.default_rng(seed).random((count, n_labels)) < 0.4
    kept, held_out = split_indices(labels, fraction=fraction, seed=seed, multilabel=True)
    assert partitions(kept, held_out, count)


@given(seeds)
@settings(deadline=None, max_examples=25)
def test_a_multilabel_split_keeps_the_share_of_each_label(seed):
    labels = np.random.default_rng(seed).random((200, 4)) < np.array([0.5, 0.3, 0.2, 0.05])
    _, held_out = split_indices(labels, fraction=0.25, seed=seed, multilabel=True)
    share = labels[held_out].sum(axis=0) / labels.sum(axis=0)
    counts = labels.sum(axis=0)
    assert (np.abs(share - 0.25) * counts <= np.maximum(2.0, 0.05 * counts)).all()
    assert abs(len(held_out) - 50) <= 10


def test_two_samples_of_a_rare_label_part():
    labels = np.zeros((20, 2), dtype=int)
    labels[:, 0] = 1
    labels[[3, 7], 1] = 1
    kept, held_out = split_indices(labels, fraction=0.2, seed=0, multilabel=True)
    assert labels[kept, 1].sum() == labels[held_out, 1].sum() == 1


@given(st.integers(4, 12), st.integers(1, 4), st.integers(2, 3), fractions, seeds)
@settings(deadline=None, max_examples=40)
def test_groups_are_never_split(n_groups, group_size, n_classes, fraction, seed):
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(n_groups), group_size * n_classes))
    labels = rng.integers(0, n_classes, len(groups))
    try:
        kept, held_out = split_indices(labels, fraction=fraction, seed=seed, groups=groups)
    except DataError:  # a class may lie in one group only
        lonely = min(len(np.unique(groups[labels == label])) for label in np.unique(labels))
        assert lonely <= 2
        return
    assert partitions(kept, held_out, len(labels))
    assert not set(groups[kept]) & set(groups[held_out])


def test_a_grouped_split_is_stratified_when_groups_allow_it():
    groups = np.repeat(np.arange(20), 6)
    labels = np.tile([0, 0, 0, 0, 1, 1], 20)
    _, held_out = split_indices(labels, fraction=0.25, seed=1, groups=groups)
    assert np.bincount(labels[held_out]).tolist() == [20, 10]


def test_a_grouped_split_finds_a_group_of_every_class():
    groups = np.array(["a", "a", "b", "b", "c", "c", "d", "d"])
    labels = np.array(["x", "x", "x", "x", "y", "y", "y", "y"])
    kept, held_out = split_indices(labels, fraction=0.1, seed=0, groups=groups)
    assert set(labels[kept]) == set(labels[held_out]) == {"x", "y"}


def test_a_class_within_one_group_cannot_be_split():
    groups = np.array(["a", "a", "b", "b", "c"])
    labels = np.array(["x", "x", "y", "y", "y"])
    with pytest.raises(DataError, match=r"class 'x' cannot be on both sides .* it lies in 1 of 3 groups"):
        split_indices(labels, fraction=0.3, seed=0, groups=groups)


def test_one_group_cannot_be_split():
    with pytest.raises(DataError, match="form 1 group, at least 2 are needed"):
        split_indices(np.array([0, 1]), fraction=0.5, seed=0, groups=np.array(["a", "a"]))


@pytest.mark.parametrize("case", ["plain", "groups", "multilabel"])
def test_the_seed_decides(case):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (80, 3)) if case == "multilabel" else rng.integers(0, 2, 80)
    groups = np.arange(80) // 4 if case == "groups" else None

    def held_out(seed):
        return split_indices(labels, fraction=0.3, seed=seed, groups=groups, multilabel=case == "multilabel")[
            1
        ].tolist()

    assert held_out(5) == held_out(5)
    assert held_out(5) != held_out(6)
