from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from automl_tl.metrics.intervals import f1_interval
from automl_tl.probes.fit import PathPoint, choose
from automl_tl.probes.ranking import interval, rank_taps, top_taps


def test_the_mean_rank_of_both_scores_decides():
    scores = {"stem": (0.5, 0.5), "middle": (0.8, 0.9), "late": (0.9, 0.7), "last": (0.7, 0.8)}
    assert rank_taps(scores) == ("middle", "late", "last", "stem")


def test_draws_go_to_logme_then_to_log_loss_then_to_the_earlier_tap():
    scores = {1: (0.8, 0.7), 2: (0.7, 0.8), 3: (0.1, 0.1)}
    assert rank_taps(scores) == (1, 2, 3)
    assert rank_taps(scores, logme={1: -0.5, 2: -0.4, 3: 0.0}) == (2, 1, 3)
    assert rank_taps(scores, log_loss={1: 0.5, 2: 0.4, 3: 0.0}) == (2, 1, 3)
    assert rank_taps(scores, logme={1: -0.3, 2: -0.4, 3: 0.0}, log_loss={1: 0.5, 2: 0.4, 3: 0.0}) == (1, 2, 3)
    assert rank_taps(scores, logme=dict.fromkeys(scores, 1.0), log_loss={1: 0.5, 2: 0.4, 3: 0.0}) == (2, 1, 3)


def test_equal_scores_share_a_rank():
    assert rank_taps({"a": (0.9, 0.1), "b": (0.9, 0.2), "c": (0.9, 0.3)}) == ("c", "b", "a")
    assert rank_taps({"a": (0.5, 0.5), "b": (0.5, 0.5)}) == ("a", "b")
    assert rank_taps({}) == ()


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=9))
def test_a_tap_that_is_better_in_both_comes_first(pairs):
    order = rank_taps(dict(enumerate(pairs)))
    assert sorted(order) == list(range(len(pairs)))
    for place, tap in enumerate(order):
        for later in order[place + 1 :]:
            assert not (pairs[later][0] > pairs[tap][0] and pairs[later][1] > pairs[tap][1])


def test_the_last_tap_is_always_among_the_top():
    order = (4, 2, 3, 5, 1)
    assert top_taps(order, last=5) == (4, 2, 3, 5)
    assert top_taps(order, last=3) == (4, 2, 3)
    assert top_taps(order, 1, last=4) == (4,)
    assert top_taps(order, 9, last=1) == order


def test_the_interval_holds_nine_draws_of_ten():
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    said = np.eye(3)[labels] + rng.normal(size=(120, 3)) * 0.6
    expected = f1_interval(labels, said.argmax(1), "multiclass", 3, level=0.9)
    assert interval(labels, said, "multiclass", 3) == expected
    low, high = f1_interval(labels, said.argmax(1), "multiclass", 3)
    assert low < expected[0] < expected[1] < high


def test_several_labels_have_an_interval():
    labels = (np.arange(60)[:, None] % np.array([2, 3, 5]) == 0).astype(np.int64)
    low, high = interval(labels, np.abs(labels - np.random.default_rng(0).random((60, 3)) * 0.6), "multilabel", 3)
    assert 0.5 < low < high < 1


@pytest.mark.parametrize(
    ("points", "chosen"),
    [
        ([(10, 0.8, 0.5), (1, 0.9, 0.7), (0.1, 0.85, 0.1)], 1),
        ([(10, 0.9, 0.5), (1, 0.9 - 1e-12, 0.4), (0.1, 0.9, 0.6)], 1),
        ([(0.1, 0.9, 0.5), (10, 0.9, 0.5 + 1e-8), (1, 0.9, 0.5)], 1),
    ],
)
def test_a_strength_is_chosen_by_score_then_log_loss_then_strength(points, chosen):
    assert choose([PathPoint(*point) for point in points]) == chosen
