from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl_tl.training.batches import MIN_STEPS, epoch_batches, evaluation_batches, steps_per_epoch

ROWS, BATCH_SIZES = st.integers(1, 400), st.integers(1, 130)


def lengths_of(n_rows, seed=0):
    return np.random.default_rng(seed).geometric(0.05, n_rows)


@given(ROWS, BATCH_SIZES, st.booleans(), st.integers(0, 9))
@settings(deadline=None, max_examples=50)
def test_every_row_comes_once_a_pass_in_batches_of_nearly_one_size(n_rows, batch_size, by_length, seed):
    lengths = lengths_of(n_rows, seed) if by_length else None
    batches = list(epoch_batches(n_rows, batch_size, np.random.default_rng(seed), lengths))
    per_pass = -(-n_rows // batch_size)
    assert len(batches) == steps_per_epoch(n_rows, batch_size) == max(MIN_STEPS, per_pass)
    whole, rest = divmod(len(batches), per_pass)
    for number in range(whole):
        one_pass = np.concatenate(batches[number * per_pass : (number + 1) * per_pass])
        assert sorted(one_pass.tolist()) == list(range(n_rows))
    begun = np.concatenate(batches[len(batches) - rest :]) if rest else np.empty(0)
    assert len(set(begun.tolist())) == len(begun)
    sizes = {len(batch) for batch in batches}
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(n_rows, batch_size // 2)


@pytest.mark.parametrize(
    ("n_rows", "batch_size", "steps"),
    [(10, 32, MIN_STEPS), (33, 32, MIN_STEPS), (320, 32, MIN_STEPS), (800, 32, 30), (960, 32, 30), (9600, 32, 300)],
)
def test_an_epoch_is_a_pass_or_as_many_steps_as_tell_something(n_rows, batch_size, steps):
    assert steps_per_epoch(n_rows, batch_size) == steps


@pytest.mark.parametrize("by_length", [False, True])
def test_passes_differ_and_a_seed_repeats_them(by_length):
    lengths = lengths_of(50) if by_length else None
    first, again = (list(epoch_batches(50, 10, np.random.default_rng(3), lengths)) for _ in range(2))
    other = list(epoch_batches(50, 10, np.random.default_rng(4), lengths))
    assert all(map(np.array_equal, first, again))
    assert not all(map(np.array_equal, first, other))
    assert not all(map(np.array_equal, first[:5], first[5:10]))


def padding(batches, lengths):
    return sum(int((lengths[batch].max() - lengths[batch]).sum()) for batch in batches)


def test_texts_of_similar_length_share_a_batch():
    lengths = lengths_of(600)
    bucketed = padding(epoch_batches(600, 16, np.random.default_rng(0), lengths), lengths)
    shuffled = padding(epoch_batches(600, 16, np.random.default_rng(0)), lengths)
    assert bucketed < 0.25 * shuffled


def test_short_texts_do_not_all_come_first():
    lengths = lengths_of(200)
    one_pass = list(epoch_batches(200, 16, np.random.default_rng(0), lengths))[:13]
    longest = [lengths[batch].max() for batch in one_pass]
    assert longest != sorted(longest)


@given(ROWS, BATCH_SIZES, st.booleans())
@settings(deadline=None, max_examples=50)
def test_evaluation_sees_every_row_once(n_rows, batch_size, by_length):
    lengths = lengths_of(n_rows) if by_length else None
    batches = list(evaluation_batches(n_rows, batch_size, lengths))
    order = np.concatenate(batches)
    assert sorted(order.tolist()) == list(range(n_rows))
    assert max(map(len, batches)) <= batch_size
    ordered_by = order if lengths is None else lengths[order]
    assert (np.diff(ordered_by) >= 0).all()
