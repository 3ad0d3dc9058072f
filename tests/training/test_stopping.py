from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl_tl.training.stopping import STOPPING_ROWS, Patience, stopping_rows


@given(n=st.integers(STOPPING_ROWS, 3000), classes=st.integers(2, 30), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_a_stratified_tenth_is_carved(n, classes, seed):
    labels = np.random.default_rng(seed).integers(0, classes, n)
    kept, held = stopping_rows(labels, seed=seed, multilabel=False)
    assert np.array_equal(np.sort(np.concatenate([kept, held])), np.arange(n))
    assert len(held) == pytest.approx(n / 10, abs=classes)
    sizes = np.bincount(labels, minlength=classes)
    assert np.abs(np.bincount(labels[held], minlength=classes) - sizes / 10).max() <= 1


def test_few_rows_are_all_trained_on():
    assert stopping_rows(np.arange(STOPPING_ROWS - 1) % 3, seed=0, multilabel=False) is None


def test_several_labels_a_sample_are_carved_too():
    labels = (np.random.default_rng(0).random((2000, 4)) < 0.2).astype(np.float32)
    kept, held = stopping_rows(labels, seed=0, multilabel=True)
    assert len(kept) + len(held) == 2000
    np.testing.assert_allclose(labels[held].mean(0), labels.mean(0), atol=0.01)


def test_groups_stay_together_but_for_a_single_one_of_all():
    labels, groups = np.arange(2000) % 2, np.arange(2000) // 10
    kept, held = stopping_rows(labels, seed=0, multilabel=False, groups=groups)
    assert not set(groups[kept]) & set(groups[held])
    alone = stopping_rows(labels, seed=0, multilabel=False, groups=np.zeros(2000))
    np.testing.assert_array_equal(alone[1], stopping_rows(labels, seed=0, multilabel=False)[1])


@given(st.lists(st.floats(0, 9), max_size=30), st.integers(1, 5), st.sampled_from((0.0, 0.5)))
@settings(deadline=None, max_examples=50)
def test_patience_ends_after_so_many_epochs_without_a_new_lowest_loss(losses, epochs, min_delta):
    patience, lowest, since = Patience(epochs=epochs, min_delta=min_delta), float("inf"), 0
    for epoch, loss in enumerate(losses):
        patience.note(epoch, loss)
        lowest, since = (loss, 0) if loss < lowest - min_delta else (lowest, since + 1)
        assert patience.is_exhausted == (since >= epochs)


def test_without_patience_nothing_is_exhausted():
    patience = Patience(epochs=0)
    for epoch in range(9):
        patience.note(epoch, 1.0 + epoch)
    assert not patience.is_exhausted
