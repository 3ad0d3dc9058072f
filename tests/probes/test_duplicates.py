from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from automl_tl.errors import DataError
from automl_tl.probes import duplicates
from automl_tl.probes.duplicates import Duplicates, find_duplicates, say


@pytest.fixture(scope="module")
def images():
    """800 digits as (8, 8) images."""
    return load_digits().images[:800].astype(np.float32)


def features(images):
    """Fixed random filters, rectified: what a layer does."""
    rng = np.random.default_rng(0)
    return np.maximum(images.reshape(len(images), 64) @ rng.standard_normal((64, 256)), 0).astype(np.float32)


def brightened(images, seed=0):
    noise = np.random.default_rng(seed).normal(0, 0.3, images.shape)
    return (images * 1.05 + noise).astype(np.float32)


def partition(groups):
    return {tuple(np.flatnonzero(groups == group)) for group in np.unique(groups)}


def test_hardly_any_digit_is_taken_for_a_copy_of_another_of_its_class(images):
    found = find_duplicates(features(images))
    assert found.n_duplicated <= 4
    assert 5 < found.dimension < 20


def test_changed_copies_are_found(images):
    found = find_duplicates(features(np.concatenate([images, brightened(images[:50])])))
    assert (found.groups[800:] == found.groups[:50]).mean() > 0.95
    assert len(np.unique(found.groups)) >= 795
    assert 95 <= found.n_duplicated <= 106
    assert (found.groups[found.pairs[:, 0]] == found.groups[found.pairs[:, 1]]).all()
    assert (found.pairs[:, 0] < found.pairs[:, 1]).all()


def test_copies_of_copies_are_one_group(images):
    copies = [brightened(images[:5], seed) for seed in range(4)]
    found = find_duplicates(features(np.concatenate([images, *copies])))
    for index in range(5):
        assert len(set(found.groups[[index, *range(800 + index, 820, 5)]])) == 1
    assert np.bincount(found.groups).max() == 5


def test_more_copies_than_neighbors_are_found_when_they_are_very_near(images):
    burst = np.repeat(images[:1], 40, axis=0) + np.random.default_rng(0).normal(0, 0.02, (40, 8, 8))
    found = find_duplicates(features(np.concatenate([images, burst]).astype(np.float32)))
    assert set(found.groups[800:]) == {found.groups[0]}


@settings(deadline=None, max_examples=25)
@given(n=st.integers(50, 400), d=st.integers(2, 30), seed=st.integers(0, 1000))
def test_samples_at_random_are_hardly_ever_near_duplicates(n, d, seed):
    found = find_duplicates(np.random.default_rng(seed).standard_normal((n, d)))
    assert found.n_duplicated <= max(4, 0.02 * n)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 8), min_size=2, max_size=30), st.integers(1, 5), st.integers(0, 1000))
def test_equal_features_are_always_duplicates(numbers, d, seed):
    rows = np.random.default_rng(seed).standard_normal((9, d))
    found = find_duplicates(rows[numbers], others=rows[numbers[:1]])
    for number in numbers:
        assert len(set(found.groups[np.array(numbers) == number])) == 1
    assert found.across.shape == (1, 2)
    first_seen = [int(group) for index, group in enumerate(found.groups) if group not in found.groups[:index]]
    assert first_seen == list(range(len(first_seen)))


def test_samples_that_are_all_equal_are_one_group():
    found = find_duplicates(np.ones((20, 3)))
    assert not found.groups.any()
    assert found.n_duplicated == 20


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000))
def test_the_order_of_samples_does_not_matter(images, seed):
    rows = features(np.concatenate([images[:200], brightened(images[:20])]))
    order = np.random.default_rng(seed).permutation(len(rows))
    shuffled = np.empty(len(rows), np.int64)
    shuffled[order] = find_duplicates(rows[order]).groups
    assert partition(shuffled) == partition(find_duplicates(rows).groups)


@pytest.mark.parametrize(("name", "value"), [("TILE", 37), ("PAIRS", 3), ("AXES", 2)])
def test_how_much_is_compared_at_once_does_not_matter(images, monkeypatch, name, value):
    rows = features(np.concatenate([images, brightened(images[:50])]))
    usual = find_duplicates(rows[100:], others=rows[:100])
    monkeypatch.setattr(duplicates, name, value)
    found = find_duplicates(rows[100:], others=rows[:100])
    np.testing.assert_array_equal(found.groups, usual.groups)
    np.testing.assert_array_equal(found.across, usual.across)


def test_a_part_of_the_samples_is_enough_to_tell_what_is_near(images, monkeypatch):
    monkeypatch.setattr(duplicates, "REFERENCES", 200)
    found = find_duplicates(features(np.concatenate([images, brightened(images[:50])])))
    assert (found.groups[800:] == found.groups[:50]).mean() > 0.8
    assert found.n_duplicated <= 106


def test_others_are_matched_with_the_nearest_sample_and_change_nothing(images):
    train = features(np.concatenate([images[:700], brightened(images[:10])]))
    test = features(np.concatenate([images[700:], brightened(images[:20], seed=1), images[3:4]]))
    found = find_duplicates(train, others=test)
    np.testing.assert_array_equal(found.groups, find_duplicates(train).groups)
    matches = dict(found.across.tolist())
    assert sum(other >= 100 for other in matches) >= 20
    assert sum(other < 100 for other in matches) <= 3
    assert matches[120] == 3
    assert all(
        found.groups[matches[100 + index]] == found.groups[index] for index in range(20) if 100 + index in matches
    )


def test_a_copy_of_single_precision_is_found_among_features_of_half():
    rows = np.random.default_rng(0).standard_normal((60, 40)).astype(np.float32)
    found = find_duplicates(rows.astype(np.float16), others=rows[:5])
    assert found.across.tolist() == [[index, index] for index in range(5)]


def test_features_that_are_not_finite():
    rows = np.random.default_rng(0).standard_normal((20, 4))
    broken = rows.copy()
    broken[3, 2] = np.nan
    with pytest.raises(DataError, match="not finite"):
        find_duplicates(broken)
    with pytest.raises(DataError, match="not finite"):
        find_duplicates(rows, others=broken)


def test_one_sample():
    with pytest.raises(DataError, match="at least 2"):
        find_duplicates(np.ones((1, 3)))


def made(groups, pairs, across=()):
    return Duplicates(
        groups=np.array(groups),
        pairs=np.array(pairs, np.int64).reshape(-1, 2),
        across=np.array(across, np.int64).reshape(-1, 2),
        dimension=10.0,
        reach=0.3,
    )


def test_what_people_are_told():
    ids = ["a.png", "b.png", "c.png", "d.png"]
    found = made([0, 1, 0, 0], [[0, 2], [2, 3]])
    assert say(found, ids) == (
        "3 of 4 training samples are near-duplicates of each other, such as a.png and c.png, in a group that every "
        "split keeps whole."
    )
    assert say(made([0, 1, 2, 3], []), ids) == "No two of 4 training samples are near-duplicates."
    assert say(made([0, 1, 2, 3], []), ids, other_ids=["x.png"]) == (
        "No two of 4 training samples are near-duplicates; none of 1 test samples has a near-duplicate among them."
    )
    assert say(made([0, 0, 1, 1], [[0, 1], [2, 3]], [[1, 2]]), ids, other_ids=["x.png", "y.png"]) == (
        "4 of 4 training samples are near-duplicates of each other, such as a.png and b.png, in 2 groups that splits "
        "keep whole; 1 of 2 test samples has a near-duplicate among them, such as y.png in c.png, which raises the "
        "test score."
    )
